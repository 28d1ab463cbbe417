//! Moments as HTTP headers name them (RFC 9110, section 5.6.7).

/// Seconds since 1970 of an HTTP date in any of its three forms: `Sun, 06 Nov 1994 08:49:37 GMT`, and the obsolete `Sunday, 06-Nov-94 08:49:37 GMT` and
/// `Sun Nov  6 08:49:37 1994`. A year of two digits that lies more than 50 years behind `now` (seconds since 1970) is one of the past.
pub(crate) fn seconds_since_1970(text: &str, now: i64) -> Option<i64> {
    let words: Vec<&str> = text.split([' ', ',', '-']).filter(|w| !w.is_empty()).collect();
    let (day, month, year, time) = match words.as_slice() {
        [_, day, month, year, time, "GMT"] => (day, month, year, time),
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let month = 1 + MONTHS.iter().position(|name| name == month)? as i64;
    let day = number(day)?;
    let [hour, minute, second] = time.split(':').map(number).collect::<Option<Vec<_>>>()?.try_into().ok()?;
    // 60 is a leap second.
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let moment = |year| 86_400 * days_since_1970(year, month, day) + 3_600 * hour + 60 * minute + second;
    match (year.len(), number(year)?) {
        (4, year) => Some(moment(year)),
        (2, year) => {
            let this_century = moment(2000 + year);
            Some(if this_century > now + 50 * 365 * 86_400 { moment(1900 + year) } else { this_century })
        }
        _ => None,
    }
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

fn number(text: &str) -> Option<i64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Days of the Gregorian calendar from 1970-01-01. Years are counted from March, so that the leap day is their last.
const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let months_since_march = (month + 9) % 12;
    let day_of_year = (153 * months_since_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    365 * year + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-24 00:00:00 UTC.
    const NOW: i64 = 1_795_478_400;

    #[test]
    fn all_three_forms_of_a_date_are_read_and_nothing_else() {
        // Seconds by Python's `calendar.timegm`.
        for (text, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("Sun Nov  6 08:49:37 1994", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Thu, 29 Feb 2024 23:59:60 GMT", Some(1_709_251_200)),
            ("Fri, 01 Mar 2024 00:00:00 GMT", Some(1_709_251_200)),
            ("Tue, 24 Nov 2026 00:00:00 GMT", Some(NOW)),
            ("Monday, 01-Jan-70 00:00:00 GMT", Some(3_155_760_000)),
            ("Sunday, 01-Jan-80 00:00:00 GMT", Some(315_532_800)),
            ("Sun, 31 Dec 2000 12:00:00 GMT", Some(978_264_000)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 24:00:00 GMT", None),
            ("Sun, 00 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Mär 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("1994-11-06T08:49:37Z", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(seconds_since_1970(text, NOW), seconds, "{text}");
        }
    }
}

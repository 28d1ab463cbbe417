//! Amounts of money, exact.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An amount of money in millionths of a millionth of the price table's currency unit (dollars, in the table that is built in).
///
/// Prices are quoted per million tokens with a few decimals, so one token costs a whole number of these, and sums are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Money(pub u64);

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// More than anybody has.
    pub const MAX: Self = Self(u64::MAX);
    /// One currency unit.
    pub const ONE: Self = Self(1_000_000_000_000);

    /// The sum, at most [`Money::MAX`].
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least nothing.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// What `n` of these cost together.
    #[must_use]
    pub const fn times(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }

    /// A millionth of it, rounded up: from a price per million tokens to the price of one.
    #[must_use]
    pub const fn per_million(self) -> Self {
        Self(self.0.div_ceil(1_000_000))
    }
}

impl fmt::Display for Money {
    /// As `1.50`, with as many further decimals as the amount has, at most six (rounded up: an amount is never shown as less).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micro = self.0.div_ceil(1_000_000);
        let (whole, fraction) = (micro / 1_000_000, format!("{:06}", micro % 1_000_000));
        let shown = fraction.trim_end_matches('0');
        write!(f, "{whole}.{:0<2}", shown)
    }
}

impl FromStr for Money {
    type Err = String;

    /// Reads a plain decimal such as `2.50` with at most twelve decimals.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected an amount such as 2.50, found \"{text}\"");
        let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) || fraction.len() > 12 {
            return Err(wrong());
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
        let fraction: u64 = format!("{fraction:0<12}").parse().map_err(|_| wrong())?;
        whole.checked_mul(Self::ONE.0).and_then(|w| w.checked_add(fraction)).map(Self).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Money {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Money> for String {
    fn from(money: Money) -> Self {
        let (whole, fraction) = (money.0 / Money::ONE.0, money.0 % Money::ONE.0);
        let fraction = format!("{fraction:012}");
        format!("{whole}.{:0<2}", fraction.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read_and_shown() {
        for (text, value, shown) in [
            ("0", 0, "0.00"),
            ("2.50", 2_500_000_000_000, "2.50"),
            (".075", 75_000_000_000, "0.075"),
            ("12.345678901234", 12_345_678_901_234, "12.345679"),
            ("0.000000000001", 1, "0.000001"),
        ] {
            let money: Money = text.parse().unwrap();
            assert_eq!((money.0, money.to_string()), (value, shown.to_owned()));
        }
        for wrong in ["", ".", "-1", "1,5", "1e3", "$2", "0.0000000000001", "99999999999"] {
            assert!(wrong.parse::<Money>().is_err(), "{wrong}");
        }
        assert_eq!("0.075".parse::<Money>().unwrap().per_million(), Money(75_000));
    }

    proptest! {
        #[test]
        fn the_stored_form_is_exact(amount: u64) {
            prop_assert_eq!(Money::try_from(String::from(Money(amount))), Ok(Money(amount)));
        }
    }
}

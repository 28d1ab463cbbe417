//! The funnel as a person reads it: good rows that reach a stage, and where the others went.

use groundloom_data::funnel::StageCounts;

/// One stage of the funnel, in good rows: `reached = dropped + failed + passed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step<'a> {
    /// The counts as they were kept.
    pub(crate) stage: &'a StageCounts,
    /// Good rows that reached the stage.
    pub(crate) reached: u64,
    /// Of these, rows that it dropped.
    pub(crate) dropped: u64,
    /// Of these, rows that it sent to quarantine.
    pub(crate) failed: u64,
    /// Good rows that left it.
    pub(crate) passed: u64,
}

/// Rows that failed travel on with their error to the sink, and the counts include them. Here they leave where they failed.
pub(crate) fn steps(funnel: &[StageCounts]) -> Vec<Step<'_>> {
    let (mut carried, mut previous_out) = (0, None);
    funnel
        .iter()
        .map(|stage| {
            // A stage that was given other rows than the one above sent (another branch, or a set stage, which gets good rows only) carries none of its failures.
            if previous_out != Some(stage.rows_in) {
                carried = 0;
            }
            previous_out = Some(stage.rows_out);
            let failed = stage.failed.values().sum();
            let reached = stage.rows_in.saturating_sub(carried);
            carried += failed;
            Step { stage, reached, dropped: stage.dropped(), failed, passed: stage.rows_out.saturating_sub(carried) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(rows_in: u64, rows_out: u64, failed: u64) -> StageCounts {
        let failed = [("undecodable_image".to_owned(), failed)].into();
        StageCounts { rows_in, rows_out, failed, ..StageCounts::default() }
    }

    #[test]
    fn failed_rows_leave_where_they_failed() {
        let funnel = [stage(10, 10, 2), stage(10, 10, 1), stage(10, 7, 0), stage(4, 4, 0)];
        let rows: Vec<_> = steps(&funnel).iter().map(|s| (s.reached, s.dropped, s.failed, s.passed)).collect();
        assert_eq!(rows, [(10, 0, 2, 8), (8, 0, 1, 7), (7, 3, 0, 4), (4, 0, 0, 4)], "the last is a set stage");
    }
}

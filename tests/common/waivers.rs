//! Waivers of objections, for tests whose processes share the machine's files and processes.

/// A waiver of every objection, as `permit` under `[discover]` takes it.
pub(crate) fn permit_everything() -> String {
    let words: Vec<_> = gateway::discover::Waiver::all().map(|(word, _)| word).collect();
    format!("{words:?}")
}

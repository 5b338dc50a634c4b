//! What a verb without side effects says: text and exit code, so that it can be tested without a process.

/// Text for the terminal and the exit code of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Printed {
    /// Whole lines. For standard output if the code is 0, else for standard error.
    pub text: String,
    /// Exit code.
    pub code: u8,
}

impl Printed {
    pub(super) fn success(text: String) -> Self {
        Self { text, code: 0 }
    }

    /// What was looked at is wrong.
    pub(super) fn failure(text: String) -> Self {
        Self { text, code: 1 }
    }

    /// What was asked is wrong.
    pub(super) fn misuse(text: String) -> Self {
        Self { text, code: 2 }
    }
}

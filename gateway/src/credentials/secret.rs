//! A secret value: no `Debug`, no `Display`, no `Clone`; its memory is overwritten when it is dropped.

use zeroize::Zeroizing;

pub(super) struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes `value` over, without the line end that editors and `echo` leave.
    pub(super) fn new(value: Vec<u8>) -> Self {
        let mut value = Zeroizing::new(value);
        while value.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            value.pop();
        }
        Self(value)
    }

    pub(super) fn expose(&self) -> &[u8] {
        &self.0
    }
}

//! What rules most rules out before they are looked at: a host may have very many, of which a request concerns a few.
//!
//! A star in a path pattern never crosses a slash, so that a segment without one stands at the same place in every path
//! that the pattern means. A rule passes unless a segment or the method certainly differs; then it is asked itself.

use super::{PathPattern, RuleSpec};

/// A rule, as little of it as can rule it out. Those of a host lie side by side in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Where the rule is.
    pub(super) slot: u32,
    methods: u16,
    /// Which segment of the path has the print below; none where that cannot be said.
    segment: Option<u8>,
    print: u32,
}

/// What of a request is held against candidates.
#[derive(Debug)]
pub(super) struct Mesh {
    method: u16,
    /// The prints of the first segments; none where the path has several readings.
    segments: Option<[Option<u32>; SEGMENTS_MAX]>,
}

// === impl Candidate ===

impl Candidate {
    pub(super) fn new(spec: &RuleSpec, slot: u32) -> Self {
        let methods = spec.methods.as_deref().map_or(u16::MAX, |methods| {
            methods.iter().fold(0, |bits, method| bits | method_bit(method))
        });
        let literal = match spec.paths.as_deref() {
            Some([pattern]) => literal_segment(pattern),
            Some(_) | None => None,
        };
        match literal {
            Some((segment, print)) => Self { slot, methods, segment: Some(segment), print },
            None => Self { slot, methods, segment: None, print: 0 },
        }
    }

    /// Whether the rule may match; if not, it certainly does not.
    pub(super) fn passes(&self, mesh: &Mesh) -> bool {
        if self.methods & mesh.method == 0 {
            return false;
        }
        match (self.segment, &mesh.segments) {
            (Some(segment), Some(prints)) => {
                prints.get(usize::from(segment)).copied().flatten() == Some(self.print)
            }
            (Some(_) | None, _) => true,
        }
    }
}

/// The last segment that is written out, as far as they are looked at, with its print.
fn literal_segment(pattern: &PathPattern) -> Option<(u8, u32)> {
    let segments = (0..).zip(pattern.plain_segments()?).take(SEGMENTS_MAX);
    let literal = segments.filter(|(_place, segment)| !segment.contains('*'));
    literal.last().map(|(place, segment)| (place, print(segment)))
}

// === impl Mesh ===

impl Mesh {
    /// `path` is none where it has several readings.
    pub(super) fn new(method: &str, path: Option<&str>) -> Self {
        let segments = path.map(|path| {
            let mut prints = [None; SEGMENTS_MAX];
            for (slot, segment) in prints.iter_mut().zip(path.split('/').skip(1)) {
                *slot = Some(print(segment));
            }
            prints
        });
        Self { method: method_bit(method), segments }
    }
}

/// FNV-1a of its begin, so that no agent makes it dear; what has the same print is told apart by the rule itself.
fn print(segment: &str) -> u32 {
    const PRIME: u32 = 0x0100_0193;
    const BASIS: u32 = 0x811C_9DC5;
    let begin = segment.bytes().take(PRINTED_BYTES_MAX);
    begin.fold(BASIS, |print, byte| (print ^ u32::from(byte)).wrapping_mul(PRIME))
}

/// The bit of a method; one for all that hardly anybody uses.
fn method_bit(method: &str) -> u16 {
    let known = KNOWN_METHODS.iter().position(|known| *known == method);
    known.map_or(1 << KNOWN_METHODS.len(), |position| 1 << position)
}

const KNOWN_METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Segments of a path that are looked at: what distinguishes the paths of an API stands among the first.
const SEGMENTS_MAX: usize = 8;
const PRINTED_BYTES_MAX: usize = 32;

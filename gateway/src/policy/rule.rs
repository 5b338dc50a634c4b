//! One compiled rule: whether a request is among those that it is about.

use std::time::SystemTime;

use super::sieve::Mesh;
use super::{Action, PathPattern, RuleName, RuleSpec, Schedule, Standing};
use crate::http::RequestHead;
use crate::net::Scheme;

/// A request as rules are asked about it: what all of them would look up is looked up once.
pub(super) struct Query<'a> {
    pub(super) head: &'a RequestHead,
    pub(super) now: SystemTime,
    pub(super) mesh: Mesh,
    /// The readings of the path beside the one that is sent.
    other_readings: &'a [String],
}

/// A rule without its agents and hosts, which have been checked when it is asked.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: RuleName,
    /// In the configuration.
    pub(super) position: u32,
    pub(super) action: Action,
    protocol: Option<Scheme>,
    methods: Option<Box<[Box<str>]>>,
    ports: Option<Box<[u16]>>,
    paths: Option<Box<[PathPattern]>>,
    schedule: Option<Box<Schedule>>,
}

// === impl Query ===

impl<'a> Query<'a> {
    pub(super) fn new(head: &'a RequestHead, now: SystemTime) -> Self {
        let other_readings = match head.path.readings.split_first() {
            Some((first, others)) if *first == head.path.sent => others,
            Some(_) | None => &head.path.readings,
        };
        let only_reading = other_readings.is_empty().then_some(head.path.sent.as_str());
        Self { head, now, mesh: Mesh::new(&head.method, only_reading), other_readings }
    }

    /// Every reading of the path, the one that is sent always among them.
    pub(super) fn readings(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.head.path.sent).chain(self.other_readings).map(String::as_str)
    }
}

// === impl Rule ===

impl Rule {
    pub(super) fn compile(spec: &RuleSpec, position: u32) -> Self {
        Self {
            name: spec.name.clone(),
            position,
            action: spec.action.clone(),
            protocol: spec.protocol,
            methods: spec
                .methods
                .as_deref()
                .map(|methods| methods.iter().map(|method| Box::from(method.as_str())).collect()),
            ports: spec.ports.as_deref().map(Box::from),
            paths: spec.paths.as_deref().map(Box::from),
            schedule: spec.schedule.clone().map(Box::new),
        }
    }

    /// Whether it is in force at `now`.
    pub(super) fn standing(&self, now: SystemTime) -> Standing {
        self.schedule.as_ref().map_or(Standing::InForce, |schedule| schedule.standing(now))
    }

    /// Whether it, as one that forbids, is to be heeded: under at least one reading of the path, and also where its
    /// hours cannot be told.
    pub(super) fn forbids(&self, query: &Query<'_>) -> bool {
        self.matches_any_reading(query)
            && matches!(self.standing(query.now), Standing::InForce | Standing::Unknown)
    }

    /// Whether it, as one that permits, is to be heeded: under every reading of the path, and only where it certainly
    /// is in force.
    pub(super) fn permits(&self, query: &Query<'_>) -> bool {
        self.matches_every_reading(query) && self.standing(query.now) == Standing::InForce
    }

    /// Whether it matches under at least one reading of the path.
    pub(super) fn matches_any_reading(&self, query: &Query<'_>) -> bool {
        self.matches_beside_path(query)
            && self
                .paths
                .as_deref()
                .is_none_or(|paths| query.readings().any(|path| one_may_match(paths, path)))
    }

    /// Whether it matches under every reading of the path.
    pub(super) fn matches_every_reading(&self, query: &Query<'_>) -> bool {
        self.matches_beside_path(query)
            && self
                .paths
                .as_deref()
                .is_none_or(|paths| query.readings().all(|path| one_matches(paths, path)))
    }

    /// Whether it matches whatever is requested of a host.
    pub(super) fn is_unconditional(&self) -> bool {
        self.protocol.is_none()
            && self.ports.is_none()
            && self.methods.is_none()
            && self
                .paths
                .as_deref()
                .is_none_or(|paths| paths.iter().any(PathPattern::is_everything))
    }

    fn matches_beside_path(&self, query: &Query<'_>) -> bool {
        let destination = &query.head.destination;
        self.methods
            .as_deref()
            .is_none_or(|methods| methods.iter().any(|known| **known == *query.head.method))
            && self.ports.as_deref().is_none_or(|ports| ports.contains(&destination.port))
            && self.protocol.is_none_or(|scheme| scheme == destination.scheme)
    }
}

fn one_may_match(paths: &[PathPattern], path: &str) -> bool {
    paths.iter().any(|pattern| pattern.may_match(path))
}

pub(super) fn one_matches(paths: &[PathPattern], path: &str) -> bool {
    paths.iter().any(|pattern| pattern.matches(path))
}

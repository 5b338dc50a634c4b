//! Which rules concern a host, whatever the number of those that do not.

use std::collections::HashMap;
use std::net::IpAddr;

use super::HostPattern;
use crate::net::Host;

/// Positions of rules by the hosts that they name: a trie over the labels of names, from the last label on. A look-up
/// ends with the first label that no pattern has.
#[derive(Debug)]
pub(super) struct HostIndex<T> {
    /// The first one is the root, once there is any.
    nodes: Vec<Node<T>>,
    addresses: HashMap<IpAddr, Vec<T>>,
    any: Vec<T>,
}

#[derive(Debug)]
struct Node<T> {
    children: HashMap<Box<str>, u32>,
    /// Those that name exactly the labels up to here.
    exact: Vec<T>,
    /// Those that name everything with more labels.
    below: Vec<T>,
}

// === impl HostIndex ===

impl<T: Copy + PartialEq> HostIndex<T> {
    /// `position` concerns the hosts of `patterns`, or every host.
    pub(super) fn insert(&mut self, patterns: Option<&[HostPattern]>, position: T) {
        let Some(patterns) = patterns else {
            self.any.push(position);
            return;
        };
        for pattern in patterns {
            let positions = match pattern {
                HostPattern::Exact(Host::Ip(address)) => {
                    Some(self.addresses.entry(*address).or_default())
                }
                HostPattern::Exact(Host::Name(name)) => {
                    self.node(name.as_str()).map(|node| &mut node.exact)
                }
                HostPattern::Below(domain) => {
                    self.node(domain.as_str()).map(|node| &mut node.below)
                }
            };
            // Patterns of one rule may be the same.
            if let Some(positions) = positions.filter(|known| known.last() != Some(&position)) {
                positions.push(position);
            }
        }
    }

    /// The node of `name`, made where there is none.
    fn node(&mut self, name: &str) -> Option<&mut Node<T>> {
        if self.nodes.is_empty() {
            self.nodes.push(Node::new());
        }
        let mut current = 0;
        for label in name.rsplit('.') {
            let next = self.nodes.len();
            let node = self.nodes.get_mut(current)?;
            current = match node.children.get(label) {
                Some(child) => usize::try_from(*child).ok()?,
                None => {
                    node.children.insert(Box::from(label), u32::try_from(next).ok()?);
                    self.nodes.push(Node::new());
                    next
                }
            };
        }
        self.nodes.get_mut(current)
    }

    /// The positions that concern `host`; one may come more than once.
    pub(super) fn positions<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = T> + use<'a, T> {
        let (labels, address) = match host {
            Host::Name(name) => (Some(name.as_str()), None),
            Host::Ip(address) => (None, self.addresses.get(address)),
        };
        let along_the_name = Walk { index: self, node: self.nodes.first(), labels };
        along_the_name
            .chain(address.map(Vec::as_slice))
            .chain(std::iter::once(self.any.as_slice()))
            .flatten()
            .copied()
    }
}

impl<T> Default for HostIndex<T> {
    fn default() -> Self {
        Self { nodes: Vec::new(), addresses: HashMap::new(), any: Vec::new() }
    }
}

impl<T> Node<T> {
    fn new() -> Self {
        Self { children: HashMap::new(), exact: Vec::new(), below: Vec::new() }
    }
}

/// The lists that stand on the way of a name through the trie.
struct Walk<'a, T> {
    index: &'a HostIndex<T>,
    node: Option<&'a Node<T>>,
    /// The labels in front of the node's own.
    labels: Option<&'a str>,
}

impl<'a, T> Iterator for Walk<'a, T> {
    type Item = &'a [T];

    fn next(&mut self) -> Option<&'a [T]> {
        let labels = self.labels?;
        let (front, label) = match labels.rsplit_once('.') {
            Some((front, label)) => (Some(front), label),
            None => (None, labels),
        };
        let child = *self.node?.children.get(label)?;
        let node = self.index.nodes.get(usize::try_from(child).ok()?)?;
        self.node = Some(node);
        self.labels = front;
        Some(if front.is_some() { &node.below } else { &node.exact })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rules_of_a_host_are_found() {
        let mut index = HostIndex::default();
        let patterns = [
            "example.com",
            "*.example.com",
            "a.example.com",
            "*.a.example.com",
            "192.0.2.1",
            "2001:db8::1",
            "com",
        ];
        for (position, pattern) in (0..).zip(patterns) {
            index.insert(Some(&[HostPattern::parse(pattern).unwrap()]), position);
        }
        index.insert(None, 7);
        let rows: [(&str, &[u32]); 9] = [
            ("example.com", &[0, 7]),
            ("a.example.com", &[1, 2, 7]),
            ("b.a.example.com", &[1, 3, 7]),
            ("c.b.a.example.com", &[1, 3, 7]),
            ("notexample.com", &[7]),
            ("com", &[6, 7]),
            ("net", &[7]),
            ("192.0.2.1", &[4, 7]),
            ("[2001:db8::1]", &[5, 7]),
        ];
        for (host, expected) in rows {
            let host = Host::parse(host).unwrap();
            assert_eq!(index.positions(&host).collect::<Vec<_>>(), expected, "{host}");
        }
        assert_eq!(
            HostIndex::<u32>::default().positions(&Host::parse("a.example").unwrap()).count(),
            0
        );
    }

    #[test]
    fn a_pattern_that_stands_twice_in_a_rule_is_one() {
        let mut index = HostIndex::default();
        let pattern = HostPattern::parse("a.example.com").unwrap();
        index.insert(Some(&[pattern.clone(), pattern]), 3);
        let host = Host::parse("a.example.com").unwrap();
        assert_eq!(index.positions(&host).collect::<Vec<_>>(), [3]);
    }
}

//! resolv.conf → what a workload's stub resolver appends to names that it cannot resolve.

use crate::net::HostName;

/// The search list of a stub resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    domains: Vec<HostName>,
    /// Names with fewer dots are searched before they are asked for as they are; a resolver's own default without.
    ndots: Option<u8>,
}

impl Search {
    /// The list of the machine that Tollgate runs on, as of now.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let resolv_conf = std::fs::read_to_string(RESOLV_CONF).unwrap_or_else(|error| {
            tracing::debug!(%error, "{RESOLV_CONF} names no search domains");
            String::new()
        });
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        Self::parse(&resolv_conf, &hostname.to_string_lossy())
    }

    /// What a resolver makes of `resolv_conf` on a machine called `hostname`, as the C library does it: the last
    /// `search` or `domain` line counts, and without one the domain that the machine's name ends with. What is no
    /// domain (`.`) is left out.
    #[must_use]
    pub fn parse(resolv_conf: &str, hostname: &str) -> Self {
        let mut listed: Option<Vec<&str>> = None;
        let mut ndots = None;
        for line in resolv_conf.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("search") => listed = Some(words.collect()),
                Some("domain") => listed = Some(words.take(1).collect()),
                Some("options") => {
                    let mut named =
                        words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    ndots = named.next_back().or(ndots);
                }
                _other => {}
            }
        }
        let own = || hostname.split_once('.').map(|(_, domain)| domain).into_iter().collect();
        let domains = listed.unwrap_or_else(own).into_iter();
        let domains = domains.filter_map(|domain| HostName::parse(domain).ok()).take(DOMAINS_MAX);
        Self { domains: domains.collect(), ndots: ndots.map(|dots: u8| dots.min(NDOTS_MAX)) }
    }

    /// The domains, first to last.
    #[must_use]
    pub fn domains(&self) -> &[HostName] {
        &self.domains
    }

    /// The lines of a resolv.conf that say the same on whatever machine.
    #[must_use]
    pub fn to_lines(&self) -> String {
        let mut lines = "search".to_owned();
        for domain in &self.domains {
            lines.push(' ');
            lines.push_str(domain.as_str());
        }
        if self.domains.is_empty() {
            // Not to leave the line out: a resolver would then search the domain of the machine's name.
            lines.push_str(" .");
        }
        lines.push('\n');
        if let Some(ndots) = self.ndots {
            lines.push_str(&format!("options ndots:{ndots}\n"));
        }
        lines
    }
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Most domains that are searched; more than resolvers of old take (6).
const DOMAINS_MAX: usize = 32;

/// What resolvers cap the option at.
const NDOTS_MAX: u8 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_as_resolvers_read_it() {
        // resolv.conf, name of the machine, the lines of the same meaning.
        let rows = [
            ("nameserver 192.0.2.1\n", "box", "search .\n"),
            ("nameserver 192.0.2.1\n", "box.corp.example", "search corp.example\n"),
            ("", "box.", "search .\n"),
            ("search a.example b.example\n", "box.corp.example", "search a.example b.example\n"),
            ("search a.example\nsearch b.example\n", "box", "search b.example\n"),
            ("search a.example\ndomain b.example c.example\n", "box", "search b.example\n"),
            ("\tsearch\ta.example. \r\n", "box", "search a.example\n"),
            ("search .\n", "box.corp.example", "search .\n"),
            ("search\n", "box.corp.example", "search .\n"),
            ("search . A.Example !! 192.0.2.1\n", "box", "search a.example\n"),
            ("# search a.example\n;search b.example\n", "box", "search .\n"),
            ("options edns0 ndots:5 trust-ad\n", "box", "search .\noptions ndots:5\n"),
            ("options ndots:2\noptions ndots:200\n", "box", "search .\noptions ndots:15\n"),
            ("options ndots:2\noptions ndots:many rotate\n", "box", "search .\noptions ndots:2\n"),
        ];
        for (resolv_conf, hostname, lines) in rows {
            let search = Search::parse(resolv_conf, hostname);
            assert_eq!(search.to_lines(), lines, "{resolv_conf:?}");
            assert_eq!(Search::parse(lines, "other.name.example"), search, "{resolv_conf:?}");
        }
    }

    #[test]
    fn a_list_without_end_is_cut() {
        let endless = format!("search {}", "a.example ".repeat(1000));
        assert_eq!(Search::parse(&endless, "box").domains().len(), DOMAINS_MAX);
    }
}

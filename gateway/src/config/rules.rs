//! `[[rule]]`.

use super::agents::agent_names;
use super::diagnostic::{Findings, Located};
use super::reader::{Table, nearest, shown};
use super::schedule::schedule;
use super::sections::choice;
use crate::agent::AgentName;
use crate::net::Scheme;
use crate::policy::{
    Action, Algorithm, Budget, HostPattern, HostPatternError, Mode, PathPattern, PathPatternError,
    RuleName, RuleSpec, Unit, Window,
};

/// A rule with the places that later checks point at.
#[derive(Debug)]
pub(super) struct RuleDraft {
    pub(super) name: Located<RuleName>,
    pub(super) agents: Vec<Located<AgentName>>,
    pub(super) spec: RuleSpec,
}

/// Reads one `[[rule]]`; none where it has no usable name. What is wrong is replaced by something closed, since a
/// configuration with findings is refused anyway.
pub(super) fn rule(findings: &mut Findings, mut table: Table<'_>) -> Option<RuleDraft> {
    let name =
        table.required_string(findings, "name", "give it one, such as `name = \"read mail\"`");
    let name = name.and_then(|name| match RuleName::parse(name.value) {
        Ok(value) => Some(Located { value, place: name.place }),
        Err(error) => {
            findings.add(name.place, error.to_string(), "choose a short name");
            None
        }
    });
    let agents = agent_names(findings, &mut table, Some("leave `agents` out for every agent"));
    let hosts = host_patterns(findings, &mut table, "leave `hosts` out for every host");
    let protocol = protocol(findings, &mut table);
    let ports = table.ports(findings, "ports");
    let methods = methods(findings, &mut table);
    let paths = path_patterns(findings, &mut table, "leave `paths` out for every path");
    let action = action(findings, &mut table);
    let enabled = table.boolean(findings, "enabled").is_none_or(|enabled| enabled.value);
    let mode = mode(findings, &mut table, action.as_ref());
    let schedule = schedule(findings, &mut table);
    table.not_yet(findings, &["when"]);
    table.finish(findings);

    let name = name?;
    let spec = RuleSpec {
        name: name.value.clone(),
        agents: agents
            .as_deref()
            .map(|agents| agents.iter().map(|agent| agent.value.clone()).collect()),
        hosts,
        protocol,
        ports,
        methods,
        paths,
        action: action.unwrap_or(Action::Block),
        enabled,
        mode,
        schedule,
    };
    Some(RuleDraft { name, agents: agents.unwrap_or_default(), spec })
}

/// The words of `action`, with those that are decided but not built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ActionWord {
    Allow,
    Block,
    RateLimit,
    NotYet(&'static str),
}

fn action(findings: &mut Findings, table: &mut Table<'_>) -> Option<Action> {
    let help = "write `action = \"allow\"`, \"block\" or \"rate_limit\"";
    let text = table.required_string(findings, "action", help);
    let place = text.as_ref().map_or(table.place, |text| text.place);
    let word = text.and_then(|text| choice(findings, "action", &text, ACTIONS));
    let budget = budget(findings, table, word);
    let allow_private = allow_private(findings, table, word);
    match word? {
        ActionWord::Allow => Some(Action::Allow { allow_private }),
        ActionWord::Block => Some(Action::Block),
        ActionWord::RateLimit => Some(Action::RateLimit(budget?)),
        ActionWord::NotYet(word) => {
            let message = format!("the action `{word}` is not supported yet");
            findings.add(
                place,
                message,
                "use \"block\" until it is: what it asks for would not be enforced",
            );
            None
        }
    }
}

/// `limit`, `unit`, `window` and `algorithm`.
fn budget(
    findings: &mut Findings,
    table: &mut Table<'_>,
    word: Option<ActionWord>,
) -> Option<Budget> {
    let unit = unit(findings, table, word);
    // Where the unit is wrong, the widest range is not.
    let limit = limit(findings, table, word, unit.unwrap_or(Unit::Bytes));
    let window = window(findings, table, word);
    let algorithm = algorithm(findings, table, word)?;
    Some(Budget { limit: limit?, unit: unit?, window: window?, algorithm })
}

fn limit(
    findings: &mut Findings,
    table: &mut Table<'_>,
    word: Option<ActionWord>,
    unit: Unit,
) -> Option<u64> {
    let help = "say how much: `limit = 100`";
    is_needed_by_rate_limit(findings, table, "limit", word, help);
    let limit = table.integer(findings, "limit")?;
    let max = unit.limit_max();
    let number = u64::try_from(limit.value).ok().filter(|number| (1..=max).contains(number));
    if number.is_none() {
        let help = "to refuse everything, write `action = \"block\"`";
        findings.add(limit.place, format!("`limit` is between 1 and {max}"), help);
    }
    number
}

fn window(
    findings: &mut Findings,
    table: &mut Table<'_>,
    word: Option<ActionWord>,
) -> Option<Window> {
    let help = "say for how long: `window = \"minute\"`, \"hour\" or \"day\"";
    is_needed_by_rate_limit(findings, table, "window", word, help);
    let words = [("minute", Window::Minute), ("hour", Window::Hour), ("day", Window::Day)];
    let text = table.string(findings, "window")?;
    choice(findings, "window", &text, &words)
}

/// Requests where nothing is said; none where it is wrong.
fn unit(findings: &mut Findings, table: &mut Table<'_>, word: Option<ActionWord>) -> Option<Unit> {
    belongs_to_rate_limit(findings, table, "unit", word);
    let words = [Unit::Requests, Unit::Bytes, Unit::Tokens].map(|unit| (unit.as_str(), unit));
    match table.string(findings, "unit") {
        Some(text) => choice(findings, "unit", &text, &words),
        None => Some(Unit::Requests),
    }
}

/// Fixed where nothing is said; none where it is wrong.
fn algorithm(
    findings: &mut Findings,
    table: &mut Table<'_>,
    word: Option<ActionWord>,
) -> Option<Algorithm> {
    belongs_to_rate_limit(findings, table, "algorithm", word);
    let words = [Algorithm::Fixed, Algorithm::Sliding].map(|word| (word.as_str(), word));
    match table.string(findings, "algorithm") {
        Some(text) => choice(findings, "algorithm", &text, &words),
        None => Some(Algorithm::Fixed),
    }
}

fn is_needed_by_rate_limit(
    findings: &mut Findings,
    table: &Table<'_>,
    key: &'static str,
    word: Option<ActionWord>,
    help: &str,
) {
    if word == Some(ActionWord::RateLimit) && table.place_of(key).is_none() {
        findings.add(table.place, format!("a rate_limit rule needs `{key}`"), help);
    }
    belongs_to_rate_limit(findings, table, key, word);
}

fn belongs_to_rate_limit(
    findings: &mut Findings,
    table: &Table<'_>,
    key: &'static str,
    word: Option<ActionWord>,
) {
    // Where the action itself is wrong, nobody knows what belongs to it.
    if let Some(ActionWord::Allow | ActionWord::Block) = word
        && let Some(place) = table.place_of(key)
    {
        let help = "remove it, or write `action = \"rate_limit\"`";
        findings.add(place, format!("`{key}` belongs to rate_limit rules only"), help);
    }
}

fn allow_private(findings: &mut Findings, table: &mut Table<'_>, word: Option<ActionWord>) -> bool {
    let Some(allow) = table.boolean(findings, "allow_private") else { return false };
    if allow.value && matches!(word, Some(ActionWord::Block | ActionWord::RateLimit)) {
        let help = "remove it, or put it on the rule that allows the host";
        findings.add(allow.place, "`allow_private` belongs to allow rules only", help);
    }
    allow.value
}

fn mode(findings: &mut Findings, table: &mut Table<'_>, action: Option<&Action>) -> Mode {
    let words = [("enforce", Mode::Enforce), ("shadow", Mode::Shadow)];
    let Some(text) = table.string(findings, "mode") else { return Mode::Enforce };
    let mode = choice(findings, "mode", &text, &words).unwrap_or(Mode::Enforce);
    let counts = match action {
        Some(Action::RateLimit(budget)) => budget.unit,
        Some(Action::Allow { .. } | Action::Block) | None => Unit::Requests,
    };
    if (mode, counts == Unit::Requests) == (Mode::Shadow, false) {
        let message = format!("a limit of {counts} in shadow is not supported yet");
        findings.add(text.place, message, "count requests, or write `mode = \"enforce\"`");
    }
    mode
}

fn protocol(findings: &mut Findings, table: &mut Table<'_>) -> Option<Scheme> {
    let text = table.string(findings, "protocol")?;
    let words = [("http", Some(Scheme::Http)), ("https", Some(Scheme::Https)), ("tcp", None)];
    let protocol = choice(findings, "protocol", &text, &words)?;
    if protocol.is_none() {
        let help = "write \"http\" or \"https\", or leave it out for both";
        findings.add(text.place, "the protocol `tcp` is not supported yet", help);
    }
    protocol
}

fn methods(findings: &mut Findings, table: &mut Table<'_>) -> Option<Vec<String>> {
    let texts = table.strings(findings, "methods", Some("leave `methods` out for every method"))?;
    let mut methods = Vec::new();
    for text in texts {
        let known = KNOWN_METHODS.iter().find(|known| known.eq_ignore_ascii_case(text.value));
        if let Some(known) = known {
            methods.push((*known).to_owned());
        } else if text.value.contains('*')
            || http::Method::from_bytes(text.value.as_bytes()).is_err()
        {
            let message = format!("`{}` is not a method", shown(text.value));
            findings.add(
                text.place,
                message,
                "name methods one by one, or leave `methods` out for every method",
            );
        } else {
            if let Some(meant) =
                nearest(&text.value.to_ascii_uppercase(), KNOWN_METHODS.iter().copied())
            {
                let message = format!("`{}` is not a known method", shown(text.value));
                findings.add(text.place, message, format!("did you mean `{meant}`?"));
            }
            methods.push(text.value.to_owned());
        }
    }
    Some(methods)
}

/// `hosts = […]`.
pub(super) fn host_patterns(
    findings: &mut Findings,
    table: &mut Table<'_>,
    empty_help: &str,
) -> Option<Vec<HostPattern>> {
    let texts = table.strings(findings, "hosts", Some(empty_help))?;
    let mut patterns = Vec::new();
    for text in texts {
        match HostPattern::parse(text.value) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                let message = format!("`{}` is not a host pattern: {error}", shown(text.value));
                findings.add(text.place, message, host_help(&error, empty_help));
            }
        }
    }
    Some(patterns)
}

fn host_help(error: &HostPatternError, everything_help: &str) -> String {
    match error {
        HostPatternError::Scheme => "write the host alone, without `https://`".to_owned(),
        HostPatternError::Port => "write the host alone, and the port into `ports`".to_owned(),
        HostPatternError::Path => "write the host alone, and the path into `paths`".to_owned(),
        HostPatternError::Everything => everything_help.to_owned(),
        HostPatternError::InnerWildcard => {
            "write `*.example.com`, or name the hosts one by one".to_owned()
        }
        HostPatternError::PublicSuffix { .. } => {
            "name the hosts one by one, or put a wildcard below a domain that one owner holds"
                .to_owned()
        }
        HostPatternError::Host(_) => {
            "write a host name, an address, or `*.` and a domain".to_owned()
        }
    }
}

/// `paths = […]`.
pub(super) fn path_patterns(
    findings: &mut Findings,
    table: &mut Table<'_>,
    empty_help: &str,
) -> Option<Vec<PathPattern>> {
    let texts = table.strings(findings, "paths", Some(empty_help))?;
    let mut patterns = Vec::new();
    for text in texts {
        match PathPattern::parse(text.value) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                let message = format!("`{}` is not a path pattern: {error}", shown(text.value));
                findings.add(text.place, message, path_help(&error, text.value));
            }
        }
    }
    Some(patterns)
}

fn path_help(error: &PathPatternError, text: &str) -> String {
    match error {
        PathPatternError::NoLeadingSlash => format!("write `/{}`", shown(text)),
        PathPatternError::Query => "the query of a request is not matched; remove it".to_owned(),
        PathPatternError::DoubleStar => "`/a/*` is already everything below `/a`".to_owned(),
        PathPatternError::DotSegment { .. } => "write the path without `.` and `..`".to_owned(),
        PathPatternError::Encoding { .. } => {
            "write two hexadecimal digits behind `%`; no request has %2F, %5C or %00, and `*` is always a wildcard".to_owned()
        }
        PathPatternError::Control => "remove them".to_owned(),
    }
}

const ACTIONS: &[(&str, ActionWord)] = &[
    ("allow", ActionWord::Allow),
    ("block", ActionWord::Block),
    ("rate_limit", ActionWord::RateLimit),
    ("approve", ActionWord::NotYet("approve")),
    ("passthrough", ActionWord::NotYet("passthrough")),
];

/// Methods that are accepted in any case, and meant when a spelling is near.
const KNOWN_METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"];

//! `Accepted` → [`Sniffed`]: which protocol the agent speaks; bounded, timed, inconclusive is refused.

//! Whole connections through the stages, against origins in this process.

mod ambiguity;
mod budgets;
mod endings;
mod forwarding;
mod malformed;
mod proxy;
mod refusals;
mod shadow;
mod upgrades;
mod world;

//! `tollgate doctor`: that it proves what it says, that it can fail, and that it leaves nothing behind. Privileged.

#[cfg(test)]
mod common;

#[cfg(test)]
#[path = "doctor/command.rs"]
mod command;

#[cfg(test)]
#[path = "doctor/layers.rs"]
mod layers;

#[cfg(test)]
#[path = "doctor/starting.rs"]
mod starting;

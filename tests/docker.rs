//! Containers of a real engine, on a machine and with an internet of the tests' own. Privileged.

#[cfg(test)]
mod common;

#[cfg(test)]
#[path = "docker/clients.rs"]
mod clients;
#[cfg(test)]
#[path = "docker/docker_args.rs"]
mod docker_args;
#[cfg(test)]
#[path = "docker/engine.rs"]
mod engine;
#[cfg(test)]
#[path = "docker/everyday.rs"]
mod everyday;
#[cfg(test)]
#[path = "docker/governed.rs"]
mod governed;
#[cfg(test)]
#[path = "docker/images.rs"]
mod images;
#[cfg(test)]
#[path = "docker/labels.rs"]
mod labels;
#[cfg(test)]
#[path = "docker/rotation.rs"]
mod rotation;
#[cfg(test)]
#[path = "docker/runtime.rs"]
mod runtime;
#[cfg(test)]
#[path = "docker/slice.rs"]
mod slice;
#[cfg(test)]
#[path = "docker/starts.rs"]
mod starts;
#[cfg(test)]
#[path = "docker/trust.rs"]
mod trust;

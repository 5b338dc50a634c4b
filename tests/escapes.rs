//! Every way out that is known, tried for real against the delivered daemon. Privileged.

#[cfg(test)]
mod common;
#[cfg(test)]
#[path = "escapes/connects.rs"]
mod connects;
#[cfg(test)]
#[path = "escapes/dead.rs"]
mod dead;
#[cfg(test)]
#[path = "escapes/devices.rs"]
mod devices;
#[cfg(test)]
#[path = "escapes/exhaustion.rs"]
mod exhaustion;
#[cfg(test)]
#[path = "escapes/families.rs"]
mod families;
#[cfg(test)]
#[path = "escapes/governor.rs"]
mod governor;
#[cfg(test)]
#[path = "escapes/inbound.rs"]
mod inbound;
#[cfg(test)]
#[path = "escapes/layers.rs"]
mod layers;
#[cfg(test)]
#[path = "escapes/listener.rs"]
mod listener;
#[cfg(test)]
#[path = "escapes/places.rs"]
mod places;
#[cfg(test)]
#[path = "escapes/prove.rs"]
mod prove;
#[cfg(test)]
#[path = "escapes/refused.rs"]
mod refused;
#[cfg(test)]
#[path = "escapes/sink.rs"]
mod sink;
#[cfg(test)]
#[path = "escapes/table.rs"]
mod table;
#[cfg(test)]
#[path = "escapes/tap.rs"]
mod tap;
#[cfg(test)]
#[path = "escapes/wire_attacks.rs"]
mod wire_attacks;
#[cfg(test)]
#[path = "escapes/workload.rs"]
mod workload;
#[cfg(test)]
#[path = "escapes/world.rs"]
mod world;

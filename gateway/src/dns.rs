//! query → answer: names for the agent without a packet leaving.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use arc_swap::ArcSwap;
use crate::agent::Agent;
use crate::audit::Sink;
use crate::config::DeniedName;
use crate::net::HostName;
use crate::policy::Policy;
use crate::upstream::resolve::Resolver;

#[derive(Debug)]
pub struct SyntheticPool {}
impl SyntheticPool {
    pub fn new() -> Self { Self {} }
    pub fn name_of(&self, _address: IpAddr) -> Option<HostName> { unimplemented!() }
    pub fn addresses_of(&self, _name: &HostName) -> Option<(Ipv4Addr, Ipv6Addr)> { unimplemented!() }
}
pub struct Server {}
impl Server {
    pub fn new(_agent: Arc<Agent>, _policy: Arc<ArcSwap<Policy>>, _denied: DeniedName, _resolver: Resolver, _pool: Arc<SyntheticPool>, _audit: Sink) -> Self { unimplemented!() }
    pub async fn serve_udp(self: Arc<Self>, _socket: tokio::net::UdpSocket) { unimplemented!() }
    pub async fn serve_tcp(self: Arc<Self>, _stream: tokio::net::TcpStream) { unimplemented!() }
}

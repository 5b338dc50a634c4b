//! Servers outside: they take everything and answer.

use std::net::{Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use crate::world::ANSWER;

/// Serves `port` over both protocols and both families; runs in the runtime of the calling place until that ends.
pub(crate) fn serve(port: u16) {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let stream = both_families(Type::STREAM, Protocol::TCP, address);
    stream.listen(128).unwrap();
    let listener = TcpListener::from_std(stream.into()).unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                let answered = connection.write_all(ANSWER).await;
                while answered.is_ok()
                    && connection.read(&mut bytes).await.is_ok_and(|read| read > 0)
                {
                }
            });
        }
    });
    let datagrams = UdpSocket::from_std(both_families(Type::DGRAM, Protocol::UDP, address).into());
    let datagrams = datagrams.unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 4096];
        while let Ok((_, from)) = datagrams.recv_from(&mut bytes).await {
            if datagrams.send_to(ANSWER, from).await.is_err() {
                continue;
            }
        }
    });
}

fn both_families(kind: Type, protocol: Protocol, address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol)).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

//! Servers outside: they take everything and answer.

use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use crate::world::{ANSWER, AWAY, FAR, NEAR};

/// Serves `port` of every address of outside over both protocols; runs in the runtime of the calling place until that
/// ends.
pub(crate) fn serve(port: u16) {
    for address in [NEAR, FAR, AWAY].as_flattened() {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let stream = bound(Type::STREAM, Protocol::TCP, address);
        stream.listen(128).unwrap();
        tokio::spawn(answer_connections(TcpListener::from_std(stream.into()).unwrap()));
        // One socket for each address: from a common one, an answer would come from another address.
        let datagrams = bound(Type::DGRAM, Protocol::UDP, address).into();
        tokio::spawn(answer_datagrams(UdpSocket::from_std(datagrams).unwrap()));
    }
}

async fn answer_connections(listener: TcpListener) {
    while let Ok((mut connection, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            let answered = connection.write_all(ANSWER).await;
            while answered.is_ok() && connection.read(&mut bytes).await.is_ok_and(|read| read > 0) {
            }
        });
    }
}

async fn answer_datagrams(datagrams: UdpSocket) {
    let mut bytes = [0; 4096];
    loop {
        // An error is one of an earlier answer.
        if let Ok((_, from)) = datagrams.recv_from(&mut bytes).await {
            let _answered = datagrams.send_to(ANSWER, from).await.is_ok();
        }
    }
}

fn bound(kind: Type, protocol: Protocol, address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

//! A client made of bytes, for what no real client would do.

use std::path::Path;

use bytes::BytesMut;
use lifeboat_nbd::protocol::{
    ClientOption, Command, InfoRequest, OptionReply, ProtocolError, ReplyHead, Request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub struct RawClient {
    pub stream: UnixStream,
}

impl RawClient {
    /// Connected and greeted, nothing chosen yet.
    pub async fn greeted(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, lifeboat_nbd::protocol::greeting());
        stream.write_all(&3u32.to_be_bytes()).await.unwrap();
        Self { stream }
    }

    /// In transmission, with simple replies.
    pub async fn transmitting(socket: &Path, name: &str) -> Self {
        let mut client = Self::greeted(socket).await;
        client.option(&ClientOption::Go(InfoRequest { name, wanted: vec![] })).await;
        client
    }

    /// Sends an option and reads its replies up to the last.
    pub async fn option(&mut self, option: &ClientOption<'_>) {
        let mut wire = BytesMut::new();
        option.encode(&mut wire);
        self.stream.write_all(&wire).await.unwrap();
        let mut answer = BytesMut::new();
        loop {
            match OptionReply::decode(&answer) {
                Ok((_, OptionReply::Ack, _)) => return,
                Ok((_, OptionReply::Error { error, message }, _)) => panic!("{error:?}: {message}"),
                Ok((_, _, taken)) => drop(answer.split_to(taken)),
                Err(ProtocolError::Malformed(_)) => {
                    assert_ne!(self.stream.read_buf(&mut answer).await.unwrap(), 0, "closed");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub async fn send(&mut self, command: Command, cookie: u64, offset: u64, length: u32) {
        let request = Request { flags: 0, command, cookie, offset, length };
        self.stream.write_all(&request.encode()).await.unwrap();
    }

    /// The next simple reply: cookie and error.
    pub async fn reply(&mut self) -> (u64, u32) {
        let mut wire = [0; 16];
        self.stream.read_exact(&mut wire).await.unwrap();
        match ReplyHead::decode(&wire).unwrap().0 {
            ReplyHead::Simple { error, cookie } => (cookie, error),
            chunk => panic!("{chunk:?}"),
        }
    }

    /// Resolves once the server has closed the connection; returns what came before.
    pub async fn closed(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is a close, too.
        let _ = self.stream.read_to_end(&mut rest).await;
        rest
    }
}

//! Serves memory, to measure the server alone: `serve_memory SOCKET MEBIBYTES`.
//!
//! Reads are answered without a copy; writes are accepted and forgotten.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use lifeboat_nbd::{Export, ExportError, Limits, NbdServer, ReadChunk, ZeroMode, unix_uri};

struct Memory(Bytes);

type Answer<'a, T> = BoxFuture<'a, Result<T, ExportError>>;

impl Export for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, len: u32) -> Answer<'_, Vec<ReadChunk>> {
        Box::pin(async move {
            let start = usize::try_from(offset).map_err(|error| ExportError::TooLarge(error.to_string()))?;
            Ok(vec![self.0.slice(start..start + len as usize).into()])
        })
    }

    fn write(&self, _: u64, _: Bytes, _: bool) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn write_zeroes(&self, _: u64, _: u64, _: ZeroMode) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn flush(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, mebibytes] = arguments.as_slice() else {
        return Err("usage: serve_memory SOCKET MEBIBYTES".into());
    };
    let size: usize = mebibytes.parse::<usize>()? << 20;
    let server = NbdServer::new(Limits::default());
    server.add("memory", Arc::new(Memory(Bytes::from(vec![0xa5; size]))))?;
    server.listen_unix(Path::new(socket)).await?;
    println!("{}", unix_uri("memory", Path::new(socket)));
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}

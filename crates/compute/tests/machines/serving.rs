//! A file served over NBD, by Lifeboat's server in a process that can be killed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use lifeboat_compute::DiskAddress;
use lifeboat_nbd::{Export, ExportError, Limits, NbdServer, ReadChunk, ZeroMode};

use crate::guests::number;
use crate::machine::wait_for;

const PLACE: &str = "LIFEBOAT_TEST_SERVED";

/// A file as an export.
pub struct Served(pub File);

type Answer<'a, T> = BoxFuture<'a, Result<T, ExportError>>;

impl Served {
    fn done<T: Send + 'static>(result: std::io::Result<T>) -> Answer<'static, T> {
        Box::pin(async { result.map_err(|error| ExportError::Io(error.to_string())) })
    }
}

impl Export for Served {
    fn size_bytes(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, len: u32) -> Answer<'_, Vec<ReadChunk>> {
        let mut data = vec![0; len as usize];
        let read = self.0.read_exact_at(&mut data, offset);
        Self::done(read.map(|()| vec![Bytes::from(data).into()]))
    }

    fn write(&self, offset: u64, data: Bytes, _: bool) -> Answer<'_, ()> {
        Self::done(self.0.write_all_at(&data, offset))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: ZeroMode) -> Answer<'_, ()> {
        Self::done(self.0.write_all_at(&vec![0; usize::try_from(len).unwrap()], offset))
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> Answer<'_, ()> {
        Self::done(Ok(()))
    }

    fn flush(&self) -> Answer<'_, ()> {
        Self::done(self.0.sync_data())
    }
}

/// Runs as a process of its own: serves `image` of the directory until it is killed.
#[tokio::test]
#[ignore = "a part of other tests"]
async fn server() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    let place = PathBuf::from(place);
    let image = File::options().read(true).write(true).open(place.join("image")).unwrap();
    let server = NbdServer::new(Limits::default());
    server.add("disk", Arc::new(Served(image))).unwrap();
    server.listen_unix(&place.join("nbd")).await.unwrap();
    std::fs::write(place.join("serving"), "").unwrap();
    std::future::pending::<()>().await;
}

/// The server's process.
pub struct Server(Child);

impl Server {
    pub async fn start(place: &Path) -> Self {
        let _ = std::fs::remove_file(place.join("serving"));
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "serving::server", "--ignored", "--nocapture"])
            .env(PLACE, place)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self(child);
        wait_for(async || place.join("serving").exists().then_some(()))
            .await
            .expect("the server does not start");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The address of what the server serves.
pub fn address(place: &Path) -> DiskAddress {
    DiskAddress::NbdUnix { socket: place.join("nbd"), export: "disk".into() }
}

/// The last number that a guest that counts has said.
pub fn last_number(said: &str) -> u32 {
    let whole = &said[..said.rfind('\n').unwrap_or(0)];
    whole.lines().rev().find_map(number).unwrap_or(0)
}

//! What is typed on a guest's serial console.

use lifeboat_compute::{ComputeError, Provider};
use lifeboat_model::MachineId;

use crate::guests::{ECHOES, UP};
use crate::site::Site;

#[tokio::test]
async fn a_guest_reads_what_is_typed_also_after_its_provider_was_replaced() {
    let mut site = Site::new().await;
    let spec = site.spec(1, ECHOES);
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.ends_with("UP\r\n")).await;
    let type_in = async |site: &Site, text: &str| site.provider.write_console(spec.id, text.as_bytes()).await;
    type_in(&site, "first ").await.unwrap();
    site.hears(spec.id, |said| said.ends_with("UP\r\nfirst ")).await;

    // More than any buffer on the way has, and all of it in order.
    site.replace_provider().await;
    let long = "0123456789".repeat(50);
    type_in(&site, &long).await.unwrap();
    let all = format!("UP\r\nfirst {long}");
    site.hears(spec.id, |said| said.ends_with(&all)).await;

    // Two that type at once come one after the other.
    let (one, other) = tokio::join!(type_in(&site, "<one>"), type_in(&site, "<two>"));
    one.and(other).unwrap();
    site.hears(spec.id, |said| said.ends_with("<one><two>") || said.ends_with("<two><one>")).await;

    site.provider.power_off(spec.id).await.unwrap();
    let off = type_in(&site, "x").await.unwrap_err();
    assert!(matches!(off, ComputeError::Off { .. }), "{off}");
    let nobody = site.provider.write_console(MachineId::new(2), b"x").await.unwrap_err();
    assert!(matches!(nobody, ComputeError::NoMachine { .. }), "{nobody}");
}

#[tokio::test]
async fn a_guest_that_does_not_read_is_told_of_and_goes_on() {
    let site = Site::new().await;
    let spec = site.spec(1, UP);
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    for _ in 0..2 {
        let unread = site.provider.write_console(spec.id, &[b'x'; 100]).await.unwrap_err();
        assert!(matches!(unread, ComputeError::ConsoleNotRead { .. }), "{unread}");
    }
    assert!(matches!(
        site.provider.status(spec.id).await.unwrap(),
        lifeboat_compute::MachineStatus::Running { .. }
    ));
    site.provider.remove(spec.id).await.unwrap();
}

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use proptest::prelude::*;

use super::*;

const CHANGE: AddressChange = AddressChange {
    from: Ipv4Addr::new(192, 0, 2, 7),
    to: Ipv4Addr::new(10, 5, 0, 2),
    prefix: 16,
    gateway: Some((Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 5, 0, 1))),
};

/// Changes a text, which is then as expected and stays so.
fn becomes(form: Form, text: &str, expected: &str) {
    let changed = change(form, text, &CHANGE);
    assert_eq!(changed.text.as_deref(), Some(expected));
    assert!(changed.is_configured);
    let again = change(form, expected, &CHANGE);
    assert_eq!(again, Changed { text: None, is_configured: true }, "it is changed once");
}

/// A text in which the address is not configured.
fn stays(form: Form, text: &str) {
    assert_eq!(change(form, text, &CHANGE), Changed { text: None, is_configured: false }, "{text}");
}

#[test]
fn ifupdown_s_stanza_of_the_address_is_changed_and_no_other() {
    becomes(
        Form::Ifupdown,
        "# eno1 has 192.0.2.7\n\
         auto eno1 br0\n\
         iface br0 inet static\n\
         \taddress 192.0.2.7\n\
         \tnetmask 255.255.255.0\n\
         \tnetwork 192.0.2.0\n\
         \tbroadcast 192.0.2.255\n\
         \tgateway 192.0.2.1\n\
         \tup ip route add 172.16.0.0/12 via 192.0.2.1 src 192.0.2.7\n\
         \tup ip rule add from 192.0.2.7/32 table 7\n\
         \t# 192.0.2.7 as it was\n\
         auto eno2\n\
         iface eno2 inet static\n\
         \taddress 192.0.2.70/24\n\
         \tnetmask 255.255.255.0\n\
         \tgateway 192.0.2.1",
        "# eno1 has 192.0.2.7\n\
         auto eno1 br0\n\
         iface br0 inet static\n\
         \taddress 10.5.0.2\n\
         \tnetmask 255.255.0.0\n\
         \tnetwork 10.5.0.0\n\
         \tbroadcast 10.5.255.255\n\
         \tgateway 10.5.0.1\n\
         \tup ip route add 172.16.0.0/12 via 10.5.0.1 src 10.5.0.2\n\
         \tup ip rule add from 10.5.0.2/32 table 7\n\
         \t# 192.0.2.7 as it was\n\
         auto eno2\n\
         iface eno2 inet static\n\
         \taddress 192.0.2.70/24\n\
         \tnetmask 255.255.255.0\n\
         \tgateway 192.0.2.1",
    );
    let with_prefix = |text: &str, expected: &str| becomes(Form::Ifupdown, text, expected);
    with_prefix(
        "iface e inet static\n address 192.0.2.7/24\n",
        "iface e inet static\n address 10.5.0.2/16\n",
    );
    with_prefix("iface e inet static\n address 192.0.2.7\n", "iface e inet static\n address 10.5.0.2/16\n");
    with_prefix(
        "iface e inet static\n address 192.0.2.7\n netmask 24\n",
        "iface e inet static\n address 10.5.0.2\n netmask 16\n",
    );
    with_prefix(
        "iface e inet manual\n up ip addr add 192.0.2.7/24 dev e\n",
        "iface e inet manual\n up ip addr add 10.5.0.2/16 dev e\n",
    );
    stays(Form::Ifupdown, "iface e inet static\n address 192.0.2.8/24\n gateway 192.0.2.7\n");
    stays(Form::Ifupdown, "iface e inet static\n #address 192.0.2.7/24\n");
}

#[test]
fn netplan_s_interface_of_the_address_is_changed_and_no_other() {
    becomes(
        Form::Netplan,
        "network:\n  version: 2\n  ethernets:\n    eno1:\n      match: {macaddress: \"52:54:00:aa:bb:cc\"}\n      \
         addresses:\n      - 192.0.2.7/24\n      routes:\n      - to: default\n        via: 192.0.2.1\n      \
         routing-policy:\n        - from: 192.0.2.7/32\n    eno2:\n      addresses: [192.0.2.70/24]\n      \
         gateway4: 192.0.2.1\n",
        "network:\n  version: 2\n  ethernets:\n    eno1:\n      match: {macaddress: \"52:54:00:aa:bb:cc\"}\n      \
         addresses:\n      - 10.5.0.2/16\n      routes:\n      - to: default\n        via: 10.5.0.1\n      \
         routing-policy:\n        - from: 10.5.0.2/32\n    eno2:\n      addresses: [192.0.2.70/24]\n      \
         gateway4: 192.0.2.1\n",
    );
    becomes(
        Form::Netplan,
        "network:\n  ethernets:\n    eno1:\n      addresses: [\"fd00::7/64\", \"192.0.2.7/24\"]\n      gateway4: 192.0.2.1\n",
        "network:\n  ethernets:\n    eno1:\n      addresses: [\"fd00::7/64\", \"10.5.0.2/16\"]\n      gateway4: 10.5.0.1\n",
    );
    becomes(
        Form::Netplan,
        "network:\n  bonds:\n    bond0:\n      addresses:\n        - \"192.0.2.7/24\":\n            label: \"a\"\n",
        "network:\n  bonds:\n    bond0:\n      addresses:\n        - \"10.5.0.2/16\":\n            label: \"a\"\n",
    );
    stays(
        Form::Netplan,
        "network:\n  ethernets:\n    e:\n      routes:\n      - to: 192.0.2.7/32\n        via: 192.0.2.1\n",
    );
}

#[test]
fn a_file_of_one_interface_is_changed_where_it_has_the_address() {
    becomes(
        Form::Networkd,
        "[Match]\nName=eno1\n[Network]\nAddress=192.0.2.7/24\nGateway=192.0.2.1\nDNS=198.51.100.1\n\
         [Route]\nDestination=172.16.0.0/12\nGateway=192.0.2.1\nPreferredSource=192.0.2.7\n",
        "[Match]\nName=eno1\n[Network]\nAddress=10.5.0.2/16\nGateway=10.5.0.1\nDNS=198.51.100.1\n\
         [Route]\nDestination=172.16.0.0/12\nGateway=10.5.0.1\nPreferredSource=10.5.0.2\n",
    );
    stays(Form::Networkd, "[Network]\nAddress=192.0.2.8/24\nGateway=192.0.2.1\nNTP=192.0.2.7\n");
    becomes(
        Form::Keyfile,
        "[connection]\nid=a\n[ipv4]\naddress1=192.0.2.7/24,192.0.2.1\nmethod=manual\nroute1=172.16.0.0/12,192.0.2.1\n",
        "[connection]\nid=a\n[ipv4]\naddress1=10.5.0.2/16,10.5.0.1\nmethod=manual\nroute1=172.16.0.0/12,10.5.0.1\n",
    );
    stays(Form::Keyfile, "[ipv4]\naddress1=192.0.2.8/24,192.0.2.1\n");
}

#[test]
fn shell_assignments_are_changed_with_what_belongs_to_the_address() {
    becomes(
        Form::Ifcfg,
        "DEVICE=eno1\r\nIPADDR=\"192.0.2.7\"\r\nNETMASK='255.255.255.0'\r\nGATEWAY=192.0.2.1\r\n",
        "DEVICE=eno1\r\nIPADDR=\"10.5.0.2\"\r\nNETMASK='255.255.0.0'\r\nGATEWAY=10.5.0.1\r\n",
    );
    becomes(
        Form::Ifcfg,
        "IPADDR0=192.0.2.70\nPREFIX0=24\nIPADDR1=192.0.2.7\nPREFIX1=24\nBROADCAST1=192.0.2.255\n",
        "IPADDR0=192.0.2.70\nPREFIX0=24\nIPADDR1=10.5.0.2\nPREFIX1=16\nBROADCAST1=10.5.255.255\n",
    );
    becomes(Form::Ifcfg, "IPADDR='192.0.2.7/24'\nBOOTPROTO=static", "IPADDR='10.5.0.2/16'\nBOOTPROTO=static");
    becomes(Form::Ifcfg, "IPADDR1=192.0.2.7", "IPADDR1=10.5.0.2\nPREFIX1=16\n");
    stays(Form::Ifcfg, "IPADDR=192.0.2.70\nGATEWAY=192.0.2.1\n");
    let to = |text| change_gateway(text, [192, 0, 2, 1].into(), [10, 5, 0, 1].into());
    assert_eq!(
        to("default 192.0.2.1 - eth0\n#192.0.2.1\n").as_deref(),
        Some("default 10.5.0.1 - eth0\n#192.0.2.1\n")
    );
    assert_eq!(to("default 192.0.2.11 - -\n"), None);
}

#[test]
fn an_address_that_is_kept_may_get_another_gateway_and_network() {
    let kept = AddressChange { to: CHANGE.from, ..CHANGE };
    let text = "[Network]\nAddress=192.0.2.7/24\nGateway=192.0.2.1\n";
    let changed = change(Form::Networkd, text, &kept).text.unwrap();
    assert_eq!(changed, "[Network]\nAddress=192.0.2.7/16\nGateway=10.5.0.1\n");
    assert_eq!(change(Form::Networkd, &changed, &kept), Changed { text: None, is_configured: true });
}

proptest! {
    #[test]
    fn any_text_is_read_without_harm(
        text in "((iface|address|netmask|addresses:|- |IPADDR|Address=|192\\.0\\.2\\.7(/24)?|192\\.0\\.2\\.1|[ -~äß\r]{0,4})[ \t=\n]?){0,40}",
        form in prop::sample::select(&Form::ALL[..]),
    ) {
        let changed = change(form, &text, &CHANGE);
        if let Some(changed) = changed.text {
            prop_assert!(text.contains("192.0.2.7") && changed.contains("10.5.0.2"));
            prop_assert_ne!(change(form, &changed, &CHANGE).text, Some(text));
        }
    }

    #[test]
    fn what_does_not_have_the_address_is_not_touched(
        text in "((iface e inet static|address|Address=|address1=|IPADDR=|- )? ?192\\.0\\.2\\.(1|70|17|77)(/24)?\n){0,20}",
        form in prop::sample::select(&Form::ALL[..]),
    ) {
        prop_assert_eq!(change(form, &text, &CHANGE), Changed { text: None, is_configured: false });
    }
}

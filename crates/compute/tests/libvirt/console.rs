//! The text of a console that is longer than libvirt keeps it in one piece.

use lifeboat_compute::Provider;

use crate::daemon::CONSOLE_BYTES;
use crate::guests::number;
use crate::machine::wait_for;
use crate::site::Site;

/// Says numbers as fast as it can, of which each is one more than the one before, up to 16384 and then DONE.
const CHATTERS: &str = r#"
again:  incl    number
        movl    number, %ecx
        movw    $0x8000, %di
        movw    $8, %bx
digit:  roll    $4, %ecx
        movb    %cl, %al
        andb    $15, %al
        addb    $'a', %al
        stosb
        decw    %bx
        jnz     digit
        movl    $0x000a0d, %eax
        stosl
        movw    $0x8000, %si
        call    say
        cmpl    $0x4000, number
        jb      again
        leaw    done, %si
        call    say
        jmp     rest
        .balign 4
number: .long   0
done:   .asciz  "DONE\r\n"
"#;

#[tokio::test]
async fn a_text_that_libvirt_cuts_to_pieces_is_whole() {
    let site = Site::new().await;
    let spec = site.spec(1, CHATTERS);
    site.provider().start(&spec).await.unwrap();
    // Part by part, as somebody who follows it.
    let text = std::sync::Mutex::new((String::new(), 0));
    let done = wait_for(async || {
        let from = text.lock().unwrap().1;
        let part = site.provider().console(spec.id, from).await.unwrap();
        let mut text = text.lock().unwrap();
        assert_eq!(part.from, from);
        text.0 += &part.text;
        text.1 = part.next;
        text.0.contains("DONE").then_some(())
    });
    done.await.expect("it does not end");
    let text = text.into_inner().unwrap().0;
    assert!(text.len() as u64 > 2 * CONSOLE_BYTES, "{}", text.len());
    let numbers: Vec<_> = text.lines().filter_map(number).collect();
    assert_eq!(numbers, (1..=0x4000).collect::<Vec<_>>());
    site.provider().remove(spec.id).await.unwrap();
    site.assert_nothing_left();
}

use super::*;

const SEGMENT: usize = 1240;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A path of 100 Mbit/s and 40 ms, filled for so many round trips.
fn filled(window: &mut Window, rounds: u64) {
    let fits = 500_000u64;
    for round in 1..=rounds {
        let now = ms(40) * u32::try_from(round).unwrap();
        let sent = window.size() as u64;
        window.handle_delivered(usize::try_from(sent.min(fits)).unwrap(), true);
        let waits = sent.saturating_sub(fits) * 40 / fits;
        window.handle_round_trip(now, ms(40 + waits));
        window.handle_round(sent.min(fits), ms(40), true);
    }
}

#[test]
fn it_doubles_until_a_queue_grows_and_then_keeps_a_quarter_more_than_fits() {
    let mut window = Window::new(SEGMENT);
    assert_eq!(window.size(), 10 * SEGMENT);
    filled(&mut window, 3);
    assert_eq!(window.size(), 80 * SEGMENT);
    filled(&mut window, 30);
    let fits = 500_000 * 5 / 4 + 500_000 / 20 + TRAIN_BYTES;
    assert!(window.size().abs_diff(fits) < SEGMENT, "{} {fits}", window.size());
    assert_eq!(window.round_trip(), Some(ms(40)));
}

#[test]
fn what_a_path_loses_by_itself_changes_nothing_and_more_does() {
    let mut window = Window::new(SEGMENT);
    filled(&mut window, 30);
    let before = window.size();
    assert!(!window.handle_loss(500_000, 3 * SEGMENT), "too few to tell");
    assert!(!window.handle_loss(1_000_000, 16 * SEGMENT), "2 %");
    assert_eq!(window.size(), before);
    assert!(window.handle_loss(500_000, 100_000));
    assert_eq!(window.size(), 350_000);
    filled(&mut window, 40);
    assert_eq!(window.size(), before, "it comes back bit by bit");
    assert!(window.handle_loss(4 * SEGMENT, 4 * SEGMENT));
    assert_eq!(window.size(), 4 * SEGMENT, "and never gets too small to notice a loss");
}

#[test]
fn a_short_path_is_not_paced_and_who_sends_little_is_not_held_for_slow() {
    let mut window = Window::new(SEGMENT);
    assert_eq!(window.pace(), None, "nothing is known");
    filled(&mut window, 30);
    let (rate, burst) = window.pace().unwrap();
    assert_eq!((rate, burst), (12_500_000 * 5 / 4, 15_625));
    let before = window.size();
    window.handle_round(100, ms(40), false);
    assert_eq!(window.size(), before);
    let mut short = Window::new(SEGMENT);
    short.handle_round_trip(ms(1), ms(1));
    short.handle_round(1_000_000, ms(1), true);
    assert_eq!(short.pace(), None);
}

#[test]
fn the_shortest_round_trip_is_measured_anew_with_half_a_window() {
    let mut window = Window::new(SEGMENT);
    filled(&mut window, 30);
    let before = window.size();
    window.handle_round_trip(ms(20_000), ms(60));
    assert_eq!((window.size(), window.round_trip()), (before / 2, Some(ms(40))));
    window.handle_round_trip(ms(20_060), ms(55));
    assert_eq!((window.size(), window.round_trip()), (before, Some(ms(55))));
}

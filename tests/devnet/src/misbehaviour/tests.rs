use super::*;

#[test]
fn orders_are_met_in_turn() {
    let conduct = Conduct::default();
    assert_eq!(conduct.next(Call::Map), None);
    conduct.order(Call::Map, Misbehaviour::Cut, 2);
    conduct.order(Call::Map, Misbehaviour::Silence, 1);
    conduct.order(Call::Register, Misbehaviour::LoseAnswer, 0);
    let met: Vec<_> = (0..4).map(|_| conduct.next(Call::Map)).collect();
    assert_eq!(met, [Some(Misbehaviour::Cut), Some(Misbehaviour::Cut), Some(Misbehaviour::Silence), None]);
    assert_eq!(conduct.next(Call::Register), None);
    conduct.order(Call::Key, Misbehaviour::Cut, usize::MAX);
    assert_eq!(conduct.next(Call::Key), Some(Misbehaviour::Cut));
    conduct.behave();
    assert_eq!(conduct.next(Call::Key), None);
}

#[test]
fn what_is_recorded_is_not_shown() {
    let conduct = Conduct::default();
    let body = br#"{"Auth": {"AuthKey": "tskey-auth-x"}}"#;
    conduct.record(Call::Register, Default::default(), 113, body);
    let recorded = conduct.recorded(Call::Register);
    assert_eq!(recorded[0].body["Auth"]["AuthKey"], "tskey-auth-x");
    assert!(!format!("{recorded:?} {conduct:?}").contains("tskey"));
    assert!(conduct.recorded(Call::Map).is_empty());
}

use std::time::Duration;

use super::*;

fn busy(busy: u32) -> Seen {
    Seen { busy, sessions: 8 }
}

fn share(advice: &[(usize, Advice)], of: usize) -> Option<(u16, u8)> {
    let (_, advice) = advice.iter().find(|(worker, _)| *worker == of)?;
    (advice.share > 0).then_some((advice.to, advice.share))
}

fn spread(workers: usize) -> Plan {
    Plan {
        in_use: workers,
        ..Plan::new(workers)
    }
}

#[test]
fn one_worker_does_what_one_can() {
    let mut plan = Plan::new(4);
    for now in (1000..9000).step_by(200) {
        assert_eq!(
            share(&plan.report(Time::ms(now), 0, busy(FULL - 1)), 0),
            None
        );
    }
    assert_eq!(plan.in_use, 1);
}

#[test]
fn a_session_alone_stays_where_it_is() {
    let mut plan = Plan::new(2);
    let alone = Seen {
        busy: 1000,
        sessions: 1,
    };
    assert_eq!(share(&plan.report(Time::ms(1000), 0, alone), 0), None);
    assert_eq!(plan.in_use, 1);
}

#[test]
fn a_full_worker_gives_half_to_the_next() {
    let mut plan = Plan::new(2);
    assert_eq!(
        share(&plan.report(Time::ms(1000), 0, busy(950)), 0),
        Some((1, 128))
    );
    assert_eq!(plan.in_use, 2);
    // It is given time, and then all is well.
    assert_eq!(share(&plan.report(Time::ms(1200), 0, busy(950)), 0), None);
    plan.report(Time::ms(1500), 1, busy(500));
    assert_eq!(share(&plan.report(Time::ms(1600), 0, busy(500)), 0), None);
    assert_eq!(plan.in_use, 2);
}

#[test]
fn work_goes_to_the_idler_one_before_another_is_used() {
    let mut plan = Plan::new(3);
    plan.report(Time::ms(1000), 0, busy(1000));
    plan.report(Time::ms(1600), 1, busy(200));
    let Some((1, given)) = share(&plan.report(Time::ms(1600), 0, busy(1000)), 0) else {
        panic!("nothing given");
    };
    assert!((100..=104).contains(&given), "{given}");
    assert_eq!(plan.in_use, 2);
    plan.report(Time::ms(2200), 1, busy(800));
    assert_eq!(
        share(&plan.report(Time::ms(2200), 0, busy(1000)), 0),
        Some((2, 128))
    );
    assert_eq!(plan.in_use, 3);
}

#[test]
fn when_all_are_full_nothing_migrates() {
    let mut plan = spread(2);
    plan.report(Time::ms(1000), 0, busy(1000));
    for now in (1600..5000).step_by(200) {
        plan.report(Time::ms(now), 1, busy(1000));
        assert_eq!(share(&plan.report(Time::ms(now), 0, busy(1000)), 0), None);
    }
}

#[test]
fn a_worker_is_given_up_after_a_calm_while() {
    let mut plan = spread(2);
    plan.report(Time::ms(1000), 0, busy(1000));
    plan.report(Time::ms(1300), 1, busy(100));
    for now in (1300..1300 + CALM_FOR.as_millis()).step_by(100) {
        plan.report(Time::ms(now), 0, busy(200));
        assert_eq!(plan.in_use, 2, "{now}");
    }
    // The other one has not been heard of for a while: it hardly wakes up.
    let advice = plan.report(Time::ms(1300) + CALM_FOR, 0, busy(200));
    assert_eq!(plan.in_use, 1);
    assert_eq!(share(&advice, 1), Some((0, u8::MAX)));
}

#[test]
fn advice_survives_its_packing_and_concerns_its_share() {
    let advice = Advice {
        to: 513,
        share: 64,
        salt: 200,
    };
    assert_eq!(Advice::unpack(advice.pack()), advice);
    assert!((0..1000).all(|id| !Advice::unpack(0).concerns(id)));
    let concerned = (0..10_000).filter(|id| advice.concerns(*id)).count();
    assert!((2_200..2_800).contains(&concerned), "{concerned}");
    let other = Advice {
        salt: 201,
        ..advice
    };
    let both = |id: &u64| advice.concerns(*id) && other.concerns(*id);
    assert!((0..10_000).filter(both).count() < 2_000);
    assert!((0..1000).all(|id| Advice::everything(1).concerns(id)));
}

#[tokio::test]
async fn without_a_session_the_next_load_begins_on_one_worker() {
    let all = Balancer::new([Handle::current(), Handle::current()]);
    let second = &all.workers()[1];
    let carries = || [all.acceptor(second).index, all.place(second).index];
    assert_eq!(carries(), [0, 0], "the second one is not in use");
    all.report(Time::ms(1000), 0, busy(1000));
    assert_eq!(all.in_use(), 2);
    assert_eq!(carries(), [1, 0]);
    assert_eq!(all.in_use(), 1);
}

#[tokio::test]
async fn whoever_accepts_is_waited_for() {
    let all = Balancer::new([Handle::current(), Handle::current()]);
    let within = |span| {
        let all = all.clone();
        async move { tokio::time::timeout(span, all.emptied()).await.is_ok() }
    };
    let [short, long] = [Duration::from_millis(20), Duration::from_secs(20)];
    assert!(within(short).await);
    let [first, second] = [0, 1].map(|index| all.workers()[index].coming());
    drop(first);
    assert!(!within(short).await, "another one accepts");
    let waits = tokio::spawn(within(long));
    tokio::time::sleep(short).await;
    drop(second);
    assert!(waits.await.expect("no panic"), "nobody said so");
}

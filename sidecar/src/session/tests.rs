use std::sync::Arc;

use super::*;
use crate::domain::Grants;

fn policies() -> Policies {
    let yaml = "
- {name: default, channels: [lobby], publish: allowed, subscribe: allowed,
   rateLimit: {publishesPerSecond: 10, burst: 2}}
- {name: news, subscribe: token}";
    Policies::new(&serde_yaml::from_str::<Vec<_>>(yaml).unwrap())
}

struct Desk {
    session: Session,
    policies: Policies,
    limits: sidecar_config::Limits,
    subscriptions: usize,
    subscribed: bool,
    now_ms: u64,
}

impl Desk {
    fn of(identity: Identity) -> Self {
        Self {
            session: Session::new(identity),
            policies: policies(),
            limits: sidecar_config::Limits { channels_per_connection: 2, ..Default::default() },
            subscriptions: 0,
            subscribed: false,
            now_ms: 0,
        }
    }

    fn on(&mut self, command: Command) -> Step {
        let Self { session, policies, limits, subscriptions, subscribed, now_ms } = self;
        let now = Circumstances {
            policies,
            limits,
            subscriptions: *subscriptions,
            subscribed: *subscribed,
            now_ms: *now_ms,
        };
        session.on(command, &now)
    }

    fn publish(&mut self, channel: &str) -> Result<(), CommandError> {
        let payload = Payload::Text("x".into());
        match self.on(Command::Publish {
            channel: channel.parse().unwrap(),
            payload,
            id: None,
            idempotency_key: None,
        }) {
            Step::Publish { .. } => Ok(()),
            Step::Refuse { error, .. } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn subscribe(&mut self, channel: &str) -> Result<(), CommandError> {
        match self.on(Command::Subscribe { channel: channel.parse().unwrap(), id: None }) {
            Step::Subscribe { .. } => Ok(()),
            Step::Refuse { error, .. } => Err(error),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_burst_passes_and_then_the_rate_holds() {
    let mut desk = Desk::of(Identity::default());
    let limited = Err(CommandError::TooManyRequests { per_second: 10 });
    assert_eq!([desk.publish("lobby"), desk.publish("lobby")], [Ok(()), Ok(())]);
    assert_eq!(desk.publish("lobby"), limited);
    desk.now_ms = 99;
    assert_eq!(desk.publish("lobby"), limited);
    desk.now_ms = 100;
    assert_eq!(desk.publish("lobby"), Ok(()));
    assert_eq!(desk.publish("lobby"), limited);
    desk.now_ms = 60_000;
    assert_eq!([desk.publish("lobby"), desk.publish("lobby")], [Ok(()), Ok(())]);
    assert_eq!(desk.publish("lobby"), limited);
}

#[test]
fn a_refused_publication_costs_nothing_of_the_rate() {
    let mut desk = Desk::of(Identity::default());
    for _ in 0..10 {
        assert_eq!(desk.publish("news:a"), Err(CommandError::PermissionDenied));
        assert_eq!(desk.publish("attic"), Err(CommandError::UnknownChannel));
    }
    assert_eq!([desk.publish("lobby"), desk.publish("lobby")], [Ok(()), Ok(())]);
}

#[test]
fn subscriptions_are_bounded_and_unique() {
    let grants = Grants { subscribe: vec!["news:*".parse().unwrap()], ..Grants::default() };
    let mut desk = Desk::of(Identity { grants: Arc::new(grants), ..Identity::default() });
    assert_eq!(desk.subscribe("news:a"), Ok(()));
    desk.subscriptions = 1;
    desk.subscribed = true;
    assert_eq!(desk.subscribe("news:a"), Err(CommandError::AlreadySubscribed));
    desk.subscriptions = 2;
    desk.subscribed = false;
    assert_eq!(desk.subscribe("news:b"), Err(CommandError::TooManyChannels { limit: 2 }));
    assert!(matches!(desk.subscribe(&"x".repeat(300)), Err(CommandError::BadRequest(_))));
}

#[test]
fn acknowledgements_need_a_history() {
    let mut desk = Desk::of(Identity::default());
    let command = Command::Acknowledge { channel: "lobby".parse().unwrap(), offset: 1, id: None };
    assert!(matches!(desk.on(command), Step::Refuse { error: CommandError::NoHistory, .. }));
    let command = Command::Unsubscribe { channel: "lobby".parse().unwrap(), id: None };
    assert!(matches!(desk.on(command), Step::Refuse { error: CommandError::NotSubscribed, .. }));
}

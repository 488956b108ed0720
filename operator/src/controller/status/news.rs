//! Which problems are new, so that each is told by one Event and none again while it lasts. Pure.

use std::collections::BTreeSet;

use super::conditions;
use crate::{
    api::{ConditionType, FanoutCluster, Reason},
    controller::validate::Problem,
};

/// The problems of a cluster that an Event was sent for and that last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told(BTreeSet<Identity>);

/// What makes two problems the same. Not the message: Kubernetes words one refusal in a new way each time.
type Identity = (Reason, String, Option<String>);

// === impl Told ===

impl Told {
    /// What an operator before this one told, by the condition that it left. One that the condition does not name (it
    /// names a few only) is told once more.
    pub(super) fn before(cluster: &FanoutCluster, problems: &[Problem]) -> Self {
        let conditions =
            cluster.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let found = [ConditionType::Degraded, ConditionType::Advisory]
            .map(|type_| conditions::find(conditions, type_).filter(|condition| condition.status == "True"));
        let messages = || found.iter().flatten().map(|condition| &condition.message);
        let named = |problem: &&Problem| messages().any(|message| message.contains(&problem.message));
        Self(problems.iter().filter(named).map(identity).collect())
    }

    /// The problems that were not told yet, and what has been told once they are. One that is mended is forgotten, so
    /// that it is told again when it comes again.
    pub(super) fn news(self, problems: &[Problem]) -> (Vec<&Problem>, Self) {
        let news = problems.iter().filter(|problem| !self.0.contains(&identity(problem))).collect();
        (news, Self(problems.iter().map(identity).collect()))
    }
}

fn identity(problem: &Problem) -> Identity {
    let Problem { reason, object, key, message: _ } = problem;
    (*reason, object.clone(), key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(secret: &str, message: &str) -> Problem {
        let object = format!("Secret/{secret}");
        Problem { reason: Reason::SecretMissing, object, key: None, message: message.to_owned() }
    }

    fn told(told: Told, problems: &[Problem]) -> (Vec<String>, Told) {
        let (news, told) = told.news(problems);
        (news.into_iter().map(|problem| problem.object.clone()).collect(), told)
    }

    #[test]
    fn each_problem_is_told_once_while_it_lasts_and_again_when_it_comes_back() {
        let [a, b] = ["a", "b"].map(|secret| missing(secret, "missing"));
        let (news, memory) = told(Told::default(), std::slice::from_ref(&a));
        assert_eq!(news, ["Secret/a"]);
        let (news, memory) = told(memory, &[a.clone(), b.clone()]);
        assert_eq!(news, ["Secret/b"], "its reason is the same, and it is another");
        let (news, memory) = told(memory, std::slice::from_ref(&b));
        assert_eq!(news, [""; 0]);
        let (news, _) = told(memory, &[missing("b", "missing, in other words"), a]);
        assert_eq!(news, ["Secret/a"]);
    }

    #[test]
    fn two_keys_of_one_secret_are_two_problems() {
        let keys = ["one", "two"].map(|key| Problem { key: Some(key.to_owned()), ..missing("a", "missing") });
        assert_eq!(told(Told::default(), &keys).0.len(), 2);
    }

    #[test]
    fn a_new_operator_does_not_repeat_what_the_condition_says() {
        let mut cluster = FanoutCluster::new("chat", Default::default());
        let condition = serde_json::json!({
            "type": "Degraded", "status": "True", "reason": "SecretMissing", "message": "a is missing; c is missing",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let status = serde_json::json!({"conditions": [condition]});
        cluster.status = Some(serde_json::from_value(status).expect("a status"));
        let problems = [missing("a", "a is missing"), missing("b", "b is missing")];
        assert_eq!(told(Told::before(&cluster, &problems), &problems).0, ["Secret/b"]);
    }
}

//! User → connections, so that those of one user are found without a look at all. A connection without a user costs
//! nothing here.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// See the module. The map's hash is keyed: whoever issues tokens chooses names.
#[derive(Debug, Default)]
pub(crate) struct Users(HashMap<Arc<str>, Connections>);

/// The slots of one user: of most users one.
#[derive(Debug)]
enum Connections {
    One(u32),
    #[expect(clippy::box_collection, reason = "nearly every entry is the other kind, and is kept small")]
    Many(Box<HashSet<u32>>),
}

impl Users {
    pub(crate) fn add(&mut self, user: &Arc<str>, slot: u32) {
        match self.0.get_mut(user) {
            None => drop(self.0.insert(Arc::clone(user), Connections::One(slot))),
            Some(Connections::Many(slots)) => drop(slots.insert(slot)),
            Some(connections @ Connections::One(_)) => {
                if let Connections::One(first) = *connections {
                    *connections = Connections::Many(Box::new(HashSet::from([first, slot])));
                }
            }
        }
    }

    pub(crate) fn remove(&mut self, user: &str, slot: u32) {
        let is_last = match self.0.get_mut(user) {
            None => false,
            Some(Connections::One(_)) => true,
            Some(Connections::Many(slots)) => {
                slots.remove(&slot);
                slots.is_empty()
            }
        };
        if is_last {
            self.0.remove(user);
        }
    }

    pub(crate) fn of(&self, user: &str) -> Vec<u32> {
        match self.0.get(user) {
            None => Vec::new(),
            Some(Connections::One(slot)) => vec![*slot],
            Some(Connections::Many(slots)) => slots.iter().copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(users: &Users, user: &str) -> Vec<u32> {
        let mut slots = users.of(user);
        slots.sort_unstable();
        slots
    }

    #[test]
    fn the_connections_of_a_user_are_those_that_were_added_and_not_removed() {
        let (mut users, ann, bob) = (Users::default(), Arc::from("ann"), Arc::from("bob"));
        for (user, slot) in [(&ann, 1), (&bob, 2), (&ann, 3), (&ann, 4)] {
            users.add(user, slot);
        }
        assert_eq!((of(&users, "ann"), of(&users, "bob")), (vec![1, 3, 4], vec![2]));
        users.remove("ann", 3);
        users.remove("bob", 2);
        users.remove("nobody", 9);
        assert_eq!((of(&users, "ann"), of(&users, "bob")), (vec![1, 4], vec![]));
        users.remove("ann", 1);
        users.remove("ann", 4);
        assert!(users.0.is_empty(), "nothing is left of a user without connections");
    }

    #[test]
    fn a_user_with_one_connection_costs_its_entry_alone() {
        assert!(size_of::<Connections>() <= 16);
    }
}

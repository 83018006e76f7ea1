//! Which connections get the next user connections of a service.

use std::collections::VecDeque;

use crate::arena::Id;

/// Grants in their order: a QUIC connection, and for how many user connections.
#[derive(Default)]
pub struct Plan {
    pub grants: VecDeque<(Id, u64)>,
    pub left: u64,
    /// With this many left PLAN_LOW is reported, once.
    low: u64,
    reported: bool,
}

impl Plan {
    pub fn new(mut grants: Vec<(Id, u64)>) -> Self {
        grants.retain(|&(_, count)| count > 0);
        let left = grants.iter().map(|&(_, count)| count).sum();
        Self { grants: grants.into(), left, low: left / 4, reported: false }
    }

    /// Use one grant; whether it is time for the next plan.
    pub fn take(&mut self) -> bool {
        if let Some((_, count)) = self.grants.front_mut() {
            *count -= 1;
            if *count == 0 {
                self.grants.pop_front();
            }
            self.left -= 1;
        }
        self.left <= self.low && !std::mem::replace(&mut self.reported, true)
    }

    /// The connection that was next is closed.
    pub fn skip(&mut self) {
        if let Some((_, count)) = self.grants.pop_front() {
            self.left -= count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(plan: &mut Plan) -> Vec<Id> {
        let mut conns = Vec::new();
        while let Some(&(conn, _)) = plan.grants.front() {
            conns.push(conn);
            plan.take();
        }
        conns
    }

    #[test]
    fn grants_are_taken_in_their_order() {
        let mut plan = Plan::new(vec![(1, 2), (9, 0), (2, 1), (1, 1)]);
        assert_eq!(plan.left, 4);
        assert_eq!(order(&mut plan), [1, 1, 2, 1]);
        assert_eq!(plan.left, 0);
    }

    #[test]
    fn a_plan_is_low_once() {
        let mut plan = Plan::new(vec![(1, 8)]);
        let reported: Vec<bool> = (0..8).map(|_| plan.take()).collect();
        assert_eq!(reported, [false, false, false, false, false, true, false, false]);
        assert!(Plan::new(vec![(1, 1)]).take());
    }

    #[test]
    fn a_plan_that_lost_a_connection_is_low_earlier() {
        let mut plan = Plan::new(vec![(1, 5), (2, 3)]);
        plan.skip();
        assert_eq!(plan.left, 3);
        assert_eq!((plan.take(), plan.take(), plan.take()), (true, false, false));
    }
}

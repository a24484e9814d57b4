//! What goes wrong between the operator and the world.

use std::time::Duration;

use crate::chance::Chance;
use crate::parts::{Fates, Part};

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is answered.
    Fair,
    /// It never arrives.
    LostBefore,
    /// It is carried out, and its answer is lost.
    LostAfter,
    /// It arrives late.
    Late(Duration),
    /// It is refused with this status, and not carried out.
    Refused(u16),
    /// The replica dies before it arrives.
    DiesBefore,
    /// The replica dies after it was carried out.
    DiesAfter,
}

/// How often what goes wrong, in a thousand requests.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Of the requests to the API server.
    pub api: u64,
    /// Of those to the CA.
    pub ca: u64,
    /// Of the writes, those at which the replica dies.
    pub deaths: u64,
    /// Of the changes that a watch tells, those that come late, with all after them.
    pub lags: u64,
    /// Whether the API server can be reached.
    pub api_up: bool,
    /// Whether the CA can.
    pub ca_up: bool,
    /// These fates alone instead of those that are drawn: of requests to the API server, and to the CA.
    pub only: Option<(Fates, Fates)>,
    /// What went wrong.
    pub happened: Vec<Part>,
    /// Requests so far, likewise.
    asked: (u64, u64),
    chance: Chance,
}

impl Weather {
    /// Nothing goes wrong.
    #[must_use]
    pub fn calm(seed: u64) -> Self {
        Self {
            api: 0,
            ca: 0,
            deaths: 0,
            lags: 0,
            api_up: true,
            ca_up: true,
            only: None,
            happened: Vec::new(),
            asked: (0, 0),
            chance: Chance::new(seed),
        }
    }

    /// Nothing more goes wrong.
    pub fn clear(&mut self) {
        (self.api, self.ca, self.deaths, self.lags) = (0, 0, 0, 0);
        (self.api_up, self.ca_up) = (true, true);
        if let Some(only) = &mut self.only {
            *only = (Fates::new(), Fates::new());
        }
    }

    /// Time on the way, there or back.
    pub fn way(&mut self) -> Duration {
        Duration::from_micros(self.chance.between(200, 3_000))
    }

    /// How late a watch tells what has changed.
    pub fn lag(&mut self) -> Option<Duration> {
        let is_late = self.lags > 0 && self.chance.in_thousand(self.lags);
        is_late.then(|| Duration::from_millis(self.chance.between(1_000, 50_000)))
    }

    /// The fate of a request to the API server.
    pub fn of_api(&mut self, writes: bool, patches: bool, lists: bool) -> Fate {
        let number = self.asked.0;
        self.asked.0 += 1;
        if !self.api_up {
            return Fate::LostBefore;
        }
        // Drawn in any case, so that the ways stay as long as they were.
        let drawn = self.drawn_of_api(writes, patches, lists);
        let fate = match &self.only {
            Some((api, _)) => api.get(&number).copied().unwrap_or(Fate::Fair),
            None => drawn,
        };
        if fate != Fate::Fair {
            self.happened.push(Part::Api(number, fate));
        }
        fate
    }

    fn drawn_of_api(&mut self, writes: bool, patches: bool, lists: bool) -> Fate {
        if writes && self.chance.in_thousand(self.deaths) {
            return *self.chance.pick(&[Fate::DiesBefore, Fate::DiesAfter]);
        }
        if !self.chance.in_thousand(self.api) {
            return Fate::Fair;
        }
        match self.chance.below(7) {
            0 => Fate::LostBefore,
            1 => Fate::LostAfter,
            2 => Fate::Late(Duration::from_millis(self.chance.between(500, 40_000))),
            3 if patches => Fate::Refused(409),
            3 if lists => Fate::Refused(410),
            4 => Fate::Refused(429),
            5 => Fate::Refused(503),
            _ => Fate::Refused(500),
        }
    }

    /// The fate of a request to the CA.
    pub fn of_ca(&mut self) -> Fate {
        let number = self.asked.1;
        self.asked.1 += 1;
        if !self.ca_up {
            return Fate::LostBefore;
        }
        let drawn = self.drawn_of_ca();
        let fate = match &self.only {
            Some((_, ca)) => ca.get(&number).copied().unwrap_or(Fate::Fair),
            None => drawn,
        };
        if fate != Fate::Fair {
            self.happened.push(Part::Ca(number, fate));
        }
        fate
    }

    fn drawn_of_ca(&mut self) -> Fate {
        if self.chance.in_thousand(self.deaths) {
            return *self.chance.pick(&[Fate::DiesBefore, Fate::DiesAfter]);
        }
        if !self.chance.in_thousand(self.ca) {
            return Fate::Fair;
        }
        match self.chance.below(6) {
            0 => Fate::LostBefore,
            1 => Fate::LostAfter,
            2 => Fate::Late(Duration::from_millis(self.chance.between(500, 100_000))),
            3 => Fate::Refused(429),
            4 => Fate::Refused(503),
            _ => Fate::Refused(500),
        }
    }
}

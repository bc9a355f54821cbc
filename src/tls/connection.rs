//! rustls' unbuffered connection, the same for both sides: one step at a time.

use std::mem;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{CommonState, Error};

use super::Side;

/// With AES-GCM that is after 2^24 records in one direction.
const EXHAUSTED: &str =
    "the keys of TLS 1.2 have encrypted as many records as they may; TLS 1.3 would change them";

/// A connection of either side.
pub(super) enum Connection {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What is to be sent once the connection can send payload.
pub(super) enum Sending<'a> {
    Nothing,
    /// Payload, whose records are put here from the beginning on.
    Payload(&'a [u8], &'a mut Vec<u8>),
    /// close_notify, which is appended to the records that wait.
    End,
}

/// Where the results of a step go.
pub(super) struct Work<'a> {
    /// Payload that was received, as far as there is room.
    pub buf: &'a mut [u8],
    /// How much of that is in use.
    pub filled: &'a mut usize,
    /// Payload beyond it.
    pub rest: &'a mut Vec<u8>,
    /// Records to be sent: handshake and alerts.
    pub records: &'a mut Vec<u8>,
    pub sending: Sending<'a>,
}

/// What came of a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Something was done, and there may be more to do.
    Again,
    /// All that was there is processed; what was to be sent is so many bytes of records.
    Done(usize),
    /// The peer said close_notify. Said once.
    PeerClosed,
}

impl Connection {
    pub fn new(side: Side) -> Result<Self, Error> {
        Ok(match side {
            Side::Server(config) => Self::Server(UnbufferedServerConnection::new(config)?),
            Side::Client(config, name) => {
                Self::Client(UnbufferedClientConnection::new(config, name)?)
            }
        })
    }

    /// What both sides have in common.
    pub fn state(&self) -> &CommonState {
        match self {
            Self::Server(connection) => connection,
            Self::Client(connection) => connection,
        }
    }

    /// Appends what is still to be sent after an error. Nothing more may be processed then.
    pub fn take_alerts(&mut self, records: &mut Vec<u8>) {
        while self.state().wants_write() {
            let mut work = Work {
                buf: &mut [],
                filled: &mut 0,
                rest: &mut Vec::new(),
                records,
                sending: Sending::Nothing,
            };
            let (_, step) = self.step(&mut [], &mut work);
            if step != Ok(Step::Again) {
                return;
            }
        }
    }

    /// Processes what was received, in place. Returns how many bytes of it are used up.
    pub fn step(
        &mut self,
        received: &mut [u8],
        work: &mut Work<'_>,
    ) -> (usize, Result<Step, Error>) {
        match self {
            Self::Server(connection) => act(connection.process_tls_records(received), work),
            Self::Client(connection) => act(connection.process_tls_records(received), work),
        }
    }
}

fn act<D>(
    status: UnbufferedStatus<'_, '_, D>,
    work: &mut Work<'_>,
) -> (usize, Result<Step, Error>) {
    let used = status.discard;
    let step = status.state.and_then(|state| {
        match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    work.receive(record?.payload);
                }
            }
            ConnectionState::EncodeTlsData(mut message) => {
                fit(work.records, |room| match message.encode(room) {
                    Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
                    // It is encoded once only.
                    encoded => Ok(encoded.unwrap_or_default()),
                });
            }
            // What waits is sent in order, so it need not be told when.
            ConnectionState::TransmitTlsData(transmit) => transmit.done(),
            ConnectionState::WriteTraffic(traffic) => return work.send(traffic).map(Step::Done),
            ConnectionState::PeerClosed => return Ok(Step::PeerClosed),
            // Both have closed it; or 0-RTT, which is not offered.
            _ => return Ok(Step::Done(0)),
        }
        Ok(Step::Again)
    });
    (used, step)
}

impl Work<'_> {
    fn receive(&mut self, payload: &[u8]) {
        let room = &mut self.buf[*self.filled..];
        let now = payload.len().min(room.len());
        room[..now].copy_from_slice(&payload[..now]);
        *self.filled += now;
        self.rest.extend_from_slice(&payload[now..]);
    }

    fn send<D>(&mut self, mut traffic: WriteTraffic<'_, D>) -> Result<usize, Error> {
        match mem::replace(&mut self.sending, Sending::Nothing) {
            Sending::Nothing => Ok(0),
            Sending::Payload(payload, records) => loop {
                match traffic.encrypt(payload, records) {
                    Ok(n) => return Ok(n),
                    Err(EncryptError::InsufficientSize(size)) => {
                        records.resize(size.required_size, 0);
                    }
                    Err(EncryptError::EncryptExhausted) => {
                        return Err(Error::General(EXHAUSTED.to_owned()));
                    }
                }
            },
            Sending::End => Ok(fit(self.records, |room| {
                match traffic.queue_close_notify(room) {
                    Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                    queued => Ok(queued.unwrap_or_default()),
                }
            })),
        }
    }
}

/// Appends what is put into as much room as it says that it needs. Returns how much that is.
fn fit(records: &mut Vec<u8>, mut put: impl FnMut(&mut [u8]) -> Result<usize, usize>) -> usize {
    let before = records.len();
    loop {
        match put(&mut records[before..]) {
            Ok(n) => {
                records.truncate(before + n);
                return n;
            }
            Err(needed) => records.resize(before + needed, 0),
        }
    }
}

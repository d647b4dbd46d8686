// The connections of a remote device: each request goes to the one with the least to do. What a lost connection had in
// flight is sent again, elsewhere or when it is back; after so many attempts and so much time the device has failed.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reactor, Timer, Transport, TransportSecurity } from '../block/reactor.ts';
import { NbdClient } from '../nbd/client/client.ts';
import type { NbdExportDetails } from '../nbd/client/handshake.ts';
import { TRANSMISSION_CAN_MULTI_CONN, TRANSMISSION_READ_ONLY } from '../nbd/protocol/constants.ts';

export interface NbdReconnectOptions {
  /** Attempts in a row before the device has failed; 20 unless given, 0 for none. */
  maxAttemptCount?: number;
  /** Time from the loss of a connection on, after which no attempt is begun; 60,000 unless given. */
  timeLimitMilliseconds?: number;
  /** Before the second attempt; doubled after each, up to 5 seconds. 100 unless given. */
  delayMilliseconds?: number;
  /** A server that owes answers and says nothing for so long is taken for dead; 60,000 unless given. */
  silenceMilliseconds?: number;
}

export interface NbdLinksOptions {
  reactor: Reactor;
  connect(done: (error: Error | null, transport: Transport | null) => void): void;
  exportName: string;
  security: TransportSecurity | null;
  connectionCount: number;
  reconnect: NbdReconnectOptions;
  /** For messages. */
  label: string;
  onConnectionLost(): void;
  onState(state: NbdLinkState, error: DmError | null): void;
}

/** What a person may want to know: no connection is left; one is there again; it did not come back in time. */
export type NbdLinkState = 'lost' | 'back' | 'failed';

/** One request: `send` starts it on a client, and calls `done` once. */
export interface Sendable {
  send(client: NbdClient, done: (errno: number, errorOffset: number) => void): void;
  end(errno: number, errorOffset: number): void;
}

const MAX_DELAY_MILLISECONDS = 5000;
/** Connections that one request may lose. */
const MAX_LOSS_COUNT = 10;
const CLOSED = 'the server closed the connection';
/** From the first packet to the end of the handshake. */
const MAX_CONNECT_MILLISECONDS = 30_000;
/** For a server that does not close its side. */
const MAX_GOODBYE_MILLISECONDS = 5000;
/** For handshakes under way when the device is closed: a server that is left in the middle of one logs an error. */
const MAX_LATE_HANDSHAKE_MILLISECONDS = 500;

interface Link {
  client: NbdClient;
  /** When it last answered, or was given something to answer. */
  heardAt: number;
}

export class NbdLinks {
  readonly #options: NbdLinksOptions;
  readonly #links: Link[] = [];
  #details!: NbdExportDetails;
  /** While no connection is there. */
  readonly #waiting: { request: Sendable; lossCount: number }[] = [];
  #failure: DmError | null = null;
  #closed = false;
  #connecting = false;
  /** Told as lost. */
  #isLost = false;
  /** Ends each attempt to connect that is under way. */
  readonly #attempts = new Set<() => void>();
  /** Goodbyes under way on connections that came after the close. */
  #lateGoodbyeCount = 0;
  #onLateEnd: (() => void) | null = null;
  #attemptCount = 0;
  #lostAt = 0;
  #watch: Timer | null = null;
  #retry: Timer | null = null;

  constructor(options: NbdLinksOptions) {
    this.#options = options;
  }

  /** What the server said at first. */
  get details(): NbdExportDetails {
    return this.#details;
  }

  /** Why every request fails; null while the device works, or may work again. */
  get failure(): DmError | null {
    return this.#failure;
  }

  get connectionCount(): number {
    return this.#links.length;
  }

  /** The first connection; the others follow where the server allows several. `done` is called once. */
  open(done: (error: Error | null) => void): void {
    this.#openLink(MAX_CONNECT_MILLISECONDS, (error, link) => {
      if (link === null) {
        done(error);
        return;
      }
      this.#details = link.client.details!;
      this.#links.push(link);
      const more = this.#allowsSeveral ? this.#options.connectionCount - 1 : 0;
      // Fewer than were asked for will do, and a server that is busy with those it has may let the others wait.
      for (let i = 0; i < more; i++) {
        this.#openLink(MAX_CONNECT_MILLISECONDS, (_error, other) => {
          if (other === null) return;
          if (this.#isSame(other.client.details!) && this.#failure === null) this.#links.push(other);
          else other.client.destroy();
        });
      }
      done(null);
    });
  }

  get #allowsSeveral(): boolean {
    return (this.#details.transmissionFlags & TRANSMISSION_CAN_MULTI_CONN) !== 0;
  }

  #isSame(details: NbdExportDetails): boolean {
    const readOnly = (flags: number): boolean => (flags & TRANSMISSION_READ_ONLY) !== 0;
    return (
      details.byteLength === this.#details.byteLength &&
      readOnly(details.transmissionFlags) === readOnly(this.#details.transmissionFlags)
    );
  }

  /** One connection, handshake included. `done` is called once, at the latest after `milliseconds`. */
  #openLink(milliseconds: number, done: (error: Error | null, link: Link | null) => void): void {
    const { connect, reactor, security, exportName, label } = this.#options;
    let client: NbdClient | null = null;
    const settle = (error: Error | null, link: Link | null): void => {
      if (!this.#attempts.delete(end)) return;
      timer.cancel();
      if (link !== null && this.#closed) {
        this.#lateGoodbyeCount++;
        link.client.disconnect(() => {
          this.#lateGoodbyeCount--;
          this.#checkLateEnd();
        });
        done(new DmError(Errno.ESHUTDOWN, `${label} is closed`), null);
        return;
      }
      if (link === null) client?.destroy();
      done(error, link);
      this.#checkLateEnd();
    };
    const end = (): void => settle(new DmError(Errno.ESHUTDOWN, `${label} is closed`), null);
    const timer = reactor.after(milliseconds, () => {
      const seconds = Math.ceil(milliseconds / 1000);
      const text = `the server has not answered for ${seconds} s; some take one client at a time`;
      settle(new DmError(Errno.ETIMEDOUT, text), null);
    });
    this.#attempts.add(end);
    connect((error, transport) => {
      if (transport === null) {
        settle(error, null);
      } else if (!this.#attempts.has(end)) {
        // Too late.
        transport.destroy();
      } else {
        const opening = new NbdClient(reactor, transport, security);
        client = opening;
        opening.open(exportName, (problem, details) => {
          if (problem !== null || details === null) settle(problem ?? new Error(CLOSED), null);
          else settle(null, { client: opening, heardAt: reactor.now() });
        });
      }
    });
  }

  /** Sends a request, now or when a connection is there. */
  submit(request: Sendable, lossCount = 0): void {
    if (this.#failure !== null || this.#closed) {
      request.end(this.#closed ? Errno.ESHUTDOWN : Errno.EIO, -1);
      return;
    }
    const link = this.#best();
    if (link === null) {
      this.#waiting.push({ request, lossCount });
      this.#reconnect();
      return;
    }
    const { reactor } = this.#options;
    if (link.client.requestCount === 0) link.heardAt = reactor.now();
    this.#keepWatch();
    request.send(link.client, (errno, errorOffset) => {
      link.heardAt = reactor.now();
      // An error of the server leaves the connection open; one of the connection closes it.
      if (errno !== 0 && !link.client.isOpen && !this.#closed) {
        this.#drop(link);
        // What ends the server each time is not sent for ever.
        if (lossCount >= MAX_LOSS_COUNT) request.end(Errno.EIO, -1);
        else this.submit(request, lossCount + 1);
      } else {
        request.end(errno, errorOffset);
      }
    });
  }

  #best(): Link | null {
    let best: Link | null = null;
    for (const link of this.#links) {
      if (!link.client.isOpen) continue;
      if (best === null || link.client.requestCount < best.client.requestCount) best = link;
    }
    return best;
  }

  #drop(link: Link): void {
    const index = this.#links.indexOf(link);
    if (index < 0) return;
    this.#links.splice(index, 1);
    this.#options.onConnectionLost();
    this.#reconnect();
  }

  // Coming back

  #reconnect(): void {
    if (this.#closed || this.#failure !== null) return;
    if (!this.#isLost && this.#best() === null) {
      this.#isLost = true;
      this.#attemptCount = 0;
      this.#lostAt = this.#options.reactor.now();
      this.#options.onState('lost', null);
    }
    if (this.#connecting) return;
    this.#connecting = true;
    this.#attemptCount = 0;
    this.#lostAt = this.#options.reactor.now();
    // Connections that were lost in silence are not to be counted as there.
    for (const link of [...this.#links]) if (!link.client.isOpen) this.#drop(link);
    this.#attempt();
  }

  #attempt(): void {
    this.#retry = null;
    const { maxAttemptCount = 20, timeLimitMilliseconds = 60_000 } = this.#options.reconnect;
    if (maxAttemptCount === 0) {
      this.#giveUp(null);
      return;
    }
    const left = timeLimitMilliseconds - (this.#options.reactor.now() - this.#lostAt);
    this.#openLink(Math.max(1000, Math.min(MAX_CONNECT_MILLISECONDS, left)), (error, link) => {
      if (this.#closed || this.#failure !== null) {
        link?.client.destroy();
      } else if (link === null) {
        this.#attemptFailed(error);
      } else if (!this.#isSame(link.client.details!)) {
        link.client.destroy();
        this.#giveUp(new Error('the export came back with another size, or writable where it was not, or the reverse'));
      } else {
        this.#cameBack(link);
      }
    });
  }

  #attemptFailed(error: Error | null): void {
    const { reactor, reconnect } = this.#options;
    const { maxAttemptCount = 20, timeLimitMilliseconds = 60_000, delayMilliseconds = 100 } = reconnect;
    const delay = Math.min(MAX_DELAY_MILLISECONDS, delayMilliseconds * 2 ** this.#attemptCount++);
    const isLate = reactor.now() + delay - this.#lostAt > timeLimitMilliseconds;
    if (this.#attemptCount >= maxAttemptCount || isLate) this.#giveUp(error);
    else this.#retry = reactor.after(delay, () => this.#attempt());
  }

  #cameBack(link: Link): void {
    this.#links.push(link);
    if (this.#isLost) this.#options.onState('back', null);
    this.#isLost = false;
    this.#attemptCount = 0;
    this.#lostAt = this.#options.reactor.now();
    for (const { request, lossCount } of this.#waiting.splice(0)) this.submit(request, lossCount);
    if (this.#allowsSeveral && this.#links.length < this.#options.connectionCount) this.#attempt();
    else this.#connecting = false;
  }

  #giveUp(error: Error | null): void {
    this.#connecting = false;
    // Others are still there: it goes on with fewer.
    if (this.#best() !== null) return;
    const why = error === null ? '' : `: ${error.message}`;
    const times = this.#attemptCount === 0 ? '' : ` after ${this.#attemptCount} attempts`;
    this.#failure = new DmError(
      Errno.EIO,
      `${this.#options.label}: the connection was lost and did not come back${times}${why}`,
      undefined,
      { cause: error },
    );
    this.#retry?.cancel();
    this.#retry = null;
    this.#options.onState('failed', this.#failure);
    for (const { request } of this.#waiting.splice(0)) request.end(Errno.EIO, -1);
  }

  /** Waits no longer for a connection that is lost: what waits for it fails. */
  abandon(): void {
    if (this.#isLost && this.#failure === null && !this.#closed)
      this.#giveUp(new Error('it is not waited for any more'));
  }

  /** Tries once more where the device has failed. `done` is called once. */
  revive(done: (error: Error | null) => void): void {
    if (this.#failure === null) {
      this.#options.reactor.wake(() => done(null));
      return;
    }
    this.#openLink(MAX_CONNECT_MILLISECONDS, (error, link) => {
      if (link === null) {
        done(error);
      } else if (!this.#isSame(link.client.details!)) {
        link.client.destroy();
        done(new DmError(Errno.ESTALE, `${this.#options.label} is in use here and has another size or mode by now`));
      } else {
        this.#failure = null;
        this.#connecting = true;
        this.#cameBack(link);
        done(null);
      }
    });
  }

  // Silence

  #keepWatch(): void {
    const { reactor, reconnect } = this.#options;
    const { silenceMilliseconds = 60_000 } = reconnect;
    if (this.#watch !== null || silenceMilliseconds === Number.POSITIVE_INFINITY) return;
    this.#watch = reactor.after(silenceMilliseconds / 4, () => {
      this.#watch = null;
      let isBusy = this.#waiting.length > 0;
      for (const link of [...this.#links]) {
        if (link.client.requestCount === 0) continue;
        isBusy = true;
        if (reactor.now() - link.heardAt > silenceMilliseconds) link.client.destroy();
      }
      if (isBusy && !this.#closed) this.#keepWatch();
    });
  }

  /** Says goodbye on every connection. Requests under way end first, where the server answers them in time. */
  close(done: () => void): void {
    const { reactor } = this.#options;
    this.#closed = true;
    this.#watch?.cancel();
    this.#retry?.cancel();
    for (const { request } of this.#waiting.splice(0)) request.end(Errno.ESHUTDOWN, -1);
    const hasLate = this.#attempts.size > 0;
    let left = this.#links.length + (hasLate ? 1 : 0);
    if (left === 0) {
      reactor.wake(done);
      return;
    }
    const timer = reactor.after(MAX_GOODBYE_MILLISECONDS, () => {
      for (const { client } of this.#links) client.destroy();
    });
    const patience = reactor.after(MAX_LATE_HANDSHAKE_MILLISECONDS, () => {
      for (const end of [...this.#attempts]) end();
    });
    const ended = (): void => {
      if (--left > 0) return;
      timer.cancel();
      patience.cancel();
      done();
    };
    if (hasLate) this.#onLateEnd = ended;
    for (const { client } of this.#links) client.disconnect(ended);
  }

  #checkLateEnd(): void {
    if (this.#attempts.size > 0 || this.#lateGoodbyeCount > 0) return;
    this.#onLateEnd?.();
    this.#onLateEnd = null;
  }
}

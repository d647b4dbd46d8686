// What stands before a mapped device's table: counts what is in flight, and holds back what comes while it is shut.
import type { Bio } from '../block/bio.ts';

/** What the gate lets through. Requests are bios; whatever else must not run while a table is swapped is a function. */
export interface GateOwner {
  /** Sends a bio that had to wait on its way; it counts itself in with {@link IoGate.enter}. */
  passDeferred(bio: Bio): void;
}

/** The gate of one device. */
export class IoGate {
  readonly #owner: GateOwner;
  #shut = false;
  #releasing = false;
  #inFlight = 0;
  // Bios that wait, oldest first.
  #head: Bio | null = null;
  #tail: Bio | null = null;
  #queries: (() => void)[] = [];
  #whenIdle: (() => void) | null = null;

  constructor(owner: GateOwner) {
    this.#owner = owner;
  }

  get inFlightCount(): number {
    return this.#inFlight;
  }

  /** Nothing is let through. */
  get isShut(): boolean {
    return this.#shut;
  }

  /**
   * True where a new bio has to wait: the gate is shut, or others that waited are still on their way out, which it must
   * not overtake.
   */
  get holdsBack(): boolean {
    return this.#shut || this.#releasing;
  }

  enter(): void {
    this.#inFlight++;
  }

  leave(): void {
    if (--this.#inFlight > 0 || this.#whenIdle === null) return;
    const callback = this.#whenIdle;
    this.#whenIdle = null;
    callback();
  }

  defer(bio: Bio): void {
    bio.next = null;
    if (this.#tail === null) this.#head = bio;
    else this.#tail.next = bio;
    this.#tail = bio;
  }

  deferQuery(query: () => void): void {
    this.#queries.push(query);
  }

  /**
   * Shuts, and calls back once when nothing is in flight (now, where that is so). One caller at a time.
   *
   * @returns stops waiting; the gate stays shut
   */
  shut(idle: () => void): () => void {
    this.#shut = true;
    if (this.#inFlight === 0) {
      idle();
      return () => {};
    }
    this.#whenIdle = idle;
    return () => {
      if (this.#whenIdle === idle) this.#whenIdle = null;
    };
  }

  /** Opens, and sends what waited on its way in the order it came; what comes meanwhile goes behind it. */
  open(): void {
    this.#shut = false;
    if (this.#releasing) return;
    this.#releasing = true;
    // Somebody who is told of an end may shut it again: the rest waits on.
    while (!this.#shut) {
      const bio = this.#takeFirst();
      if (bio === null) break;
      this.#owner.passDeferred(bio);
    }
    this.#releasing = false;
    if (!this.#shut) for (const query of this.#queries.splice(0)) query();
  }

  /** Everything that waits, taken out. */
  drain(): { bios: Bio[]; queries: (() => void)[] } {
    const bios: Bio[] = [];
    for (let bio = this.#takeFirst(); bio !== null; bio = this.#takeFirst()) bios.push(bio);
    return { bios, queries: this.#queries.splice(0) };
  }

  #takeFirst(): Bio | null {
    const bio = this.#head;
    if (bio === null) return null;
    this.#head = bio.next;
    if (this.#head === null) this.#tail = null;
    bio.next = null;
    return bio;
  }
}

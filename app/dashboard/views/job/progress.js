// @ts-check
/** Times of a job, from its events: work without pauses, stages, pace, and a steady estimate of what is left. */

import { useRef } from "../../vendor/htm-preact.js";
import { durationRange, roughly } from "../../format.js";
import { ENDED } from "../../words.js";

/** Events that end a worker's work on the job. */
const STOPS = [...ENDED, "paused", "requeued"];
/** Window of the estimates that must agree, in seconds. */
const WINDOW = 30;
const LEAST_SAMPLES = 3;
const LEAST_SPAN = 8;
/** Allowed spread of the expected end: seconds, and a fraction of what is left. */
const TOLERANCE = [15, 0.25];

/** @param {any} event */
const seconds = (event) => Date.parse(event.created_at) / 1000;

/** Seconds in which a worker worked on the job: without queue and pauses. @param {any[]} events */
export function workSeconds(events) {
  let total = 0;
  let since = /** @type {number | null} */ (null);
  for (const event of events) {
    if (event.type === "started") since = seconds(event);
    else if (STOPS.includes(event.type) && since !== null) {
      total += seconds(event) - since;
      since = null;
    }
  }
  return since === null ? total : total + Math.max(0, Date.now() / 1000 - since);
}

/** Seconds of each stage of the last attempt, without pauses. @param {any} job @param {any[]} events @returns {Map<string, number>} */
export function stageSeconds(job, events) {
  const spans = new Map();
  const changes = events.filter((event) => event.attempt === job.attempt && (event.data?.stage || STOPS.includes(event.type)));
  changes.forEach((event, at) => {
    const stage = event.type === "progress" ? event.data.stage : null;
    if (!stage) return;
    const until = changes[at + 1] ? seconds(changes[at + 1]) : job.state === "running" ? Date.now() / 1000 : seconds(event);
    spans.set(stage, (spans.get(stage) || 0) + Math.max(0, until - seconds(event)));
  });
  return spans;
}

/** Layers per minute over the last few layers of the compression: earlier ones say little about the current pace. @param {any} job @param {any[]} events */
export function layersPerMinute(job, events) {
  if (job.stage !== "compress") return null;
  const done = events.filter((event) => event.attempt === job.attempt && event.data?.finished).slice(-9);
  if (done.length < 2) return null;
  const [first, last] = [seconds(done[0]), seconds(done[done.length - 1])];
  return last > first ? (60 * (done.length - 1)) / (last - first) : null;
}

/**
 * Remaining seconds of a running job once the estimates of the last half minute agree on its end; null before.
 * @param {any} job
 */
export function useSteadyEta(job) {
  const samples = useRef(/** @type {{ at: number, end: number }[]} */ ([]));
  const left = job.state === "running" ? job.progress?.eta_seconds : null;
  const now = Date.now() / 1000;
  if (left === null || left === undefined) {
    samples.current = [];
    return null;
  }
  const newest = samples.current[samples.current.length - 1];
  if (!newest || now - newest.at >= 1) samples.current.push({ at: now, end: now + left });
  samples.current = samples.current.filter((sample) => now - sample.at <= WINDOW);
  return steady(samples.current, now);
}

/** A steady remaining time in words, as the range of the last estimate. @param {any} job @param {number} left */
export function leftText(job, left) {
  const { eta_seconds, eta_seconds_low, eta_seconds_high } = job.progress;
  if (!eta_seconds || eta_seconds_low === null || eta_seconds_high === null) return `about ${roughly(left)}`;
  return durationRange((left * eta_seconds_low) / eta_seconds, (left * eta_seconds_high) / eta_seconds);
}

/** @param {{ at: number, end: number }[]} samples oldest first @param {number} now */
export function steady(samples, now) {
  if (samples.length < LEAST_SAMPLES) return null;
  const last = samples[samples.length - 1];
  if (last.at - samples[0].at < LEAST_SPAN) return null;
  const ends = samples.map((sample) => sample.end);
  const left = Math.max(0, last.end - now);
  const spread = Math.max(...ends) - Math.min(...ends);
  return spread <= Math.max(TOLERANCE[0], TOLERANCE[1] * left) ? left : null;
}

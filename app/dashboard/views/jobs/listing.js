// @ts-check
/** The project's jobs as far as they are loaded; search, filters and order. */

import { useRef, useState } from "../../vendor/htm-preact.js";
import { get } from "../../api.js";
import { useLoaded } from "../../hooks.js";
import { modelName, requestedAmount, runsIn, titleOf } from "../../words.js";

const PAGE = 100;
/** Largest number of jobs that are loaded for a search. */
export const MOST = 1000;
const POLL_SECONDS = 2;

/**
 * The newest jobs, kept up to date, and older ones as they are asked for.
 * @returns {{ jobs: any[] | null, error: any, complete: boolean, loadMore: () => void, reload: () => void }}
 */
export function useJobs() {
  const newest = useLoaded((signal) => get(`/v1/jobs?limit=${PAGE}`, signal), [], POLL_SECONDS);
  const seen = useRef(/** @type {Map<string, any>} */ (new Map()));
  const busy = useRef(false);
  const [cursor, setCursor] = useState(/** @type {string | null | undefined} */ (undefined));
  const [failure, setFailure] = useState(/** @type {any} */ (null));
  const page = newest.data;
  if (page) merge(seen.current, page.data, page.has_more);
  const next = cursor === undefined ? page?.next_cursor : cursor;
  const complete = Boolean(page) && (!page.has_more || next === null);
  const loadMore = async () => {
    if (busy.current || complete || !next || seen.current.size >= MOST) return;
    busy.current = true;
    try {
      const older = await get(`/v1/jobs?limit=${PAGE}&after=${encodeURIComponent(next)}`);
      for (const job of older.data) seen.current.set(job.id, job);
      setCursor(older.has_more ? older.next_cursor : null);
    } catch (error) {
      setFailure(error);
    }
    busy.current = false;
  };
  const jobs = page ? [...seen.current.values()].sort((a, b) => (a.id < b.id ? 1 : -1)) : null;
  return { jobs, error: newest.error || failure, complete, loadMore, reload: newest.reload };
}

/** Put a page of the newest jobs in place of what was known of its range; what is missing there was deleted. @param {Map<string, any>} seen @param {any[]} page newest first @param {boolean} hasMore */
function merge(seen, page, hasMore) {
  const oldest = hasMore && page.length ? page[page.length - 1].id : "";
  for (const id of seen.keys()) if (id >= oldest) seen.delete(id);
  for (const job of page) seen.set(job.id, job);
}

/** @typedef {{ state: string, search: string, model: string, target: string, label: string }} Filters */

/** @param {any} job @param {Filters} filters @param {import("../../words.js").Names} uploads */
export function matches(job, filters, uploads) {
  if (filters.state && groupOf(job.state) !== filters.state) return false;
  if (filters.model && modelName(job.model, uploads) !== filters.model) return false;
  if (filters.label && !labelsOf(job).some((label) => label.join("=") === filters.label)) return false;
  if (filters.target && job.compression.target !== filters.target) return false;
  return fitsSearch(job, filters.search, uploads);
}

/** Labels of a job without its name, as key and value, by key. @param {any} job @returns {string[][]} */
export const labelsOf = (job) => Object.entries(job.labels || {}).filter(([key]) => key !== "name").sort();

/** State under which a job is listed: one that is about to change is still in its old one. @param {string} state */
export const groupOf = (state) => (state === "pausing" || state === "cancelling" ? "running" : state);

/** Whether every word is in the job's name, model, id or settings, or its letters in order in the name. @param {any} job @param {string} search @param {import("../../words.js").Names} uploads */
function fitsSearch(job, search, uploads) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const title = titleOf(job, uploads).toLowerCase();
  const labels = Object.entries(job.labels).map(([key, value]) => `${key}=${value}`);
  const text = [title, modelName(job.model, uploads), job.id, job.sweep_id || "", job.compression.method, runsIn(job.compression.target), requestedAmount(job.compression), ...labels].join(" ").toLowerCase();
  return words.every((word) => text.includes(word) || (word.length > 2 && inOrder(word, title)));
}

/** @param {string} word @param {string} text */
function inOrder(word, text) {
  let at = -1;
  return [...word].every((letter) => (at = text.indexOf(letter, at + 1)) >= 0);
}

/** States of a job that a worker has. */
const HELD = ["running", "pausing", "cancelling"];

/** Seconds in which workers ran a job, without queue and pauses; null before the start. @param {any} job */
export function elapsed(job) {
  if (!job.started_at) return null;
  const current = HELD.includes(job.state) ? (Date.now() - Date.parse(job.claimed_at)) / 1000 : 0;
  return job.worked_seconds + Math.max(0, current);
}

/** @param {any} job @param {"bytes" | "perplexity"} what */
export function resultRatio(job, what) {
  const [before, after] = [job.result?.[`${what}_before`], job.result?.[`${what}_after`]];
  return before && after !== null && after !== undefined ? after / before : null;
}

/** @type {Record<string, (job: any, uploads: import("../../words.js").Names) => string | number | null>} values by which columns are sorted */
export const ORDERS = {
  name: (job, uploads) => titleOf(job, uploads).toLowerCase(),
  status: (job) => job.state,
  runtime: (job) => job.compression.target,
  size: (job) => resultRatio(job, "bytes"),
  perplexity: (job) => resultRatio(job, "perplexity"),
  speed: (job) => job.result?.speedup?.decode ?? null,
  duration: elapsed,
  created: (job) => job.id,
};

/** Sort jobs; those without a value come last. @param {any[]} jobs @param {{ by: string, down: boolean }} sort @param {import("../../words.js").Names} uploads */
export function sorted(jobs, sort, uploads) {
  const value = ORDERS[sort.by];
  return [...jobs].sort((a, b) => {
    const [first, second] = /** @type {any[]} */ ([value(a, uploads), value(b, uploads)]);
    if (first === null || second === null) return first === second ? 0 : first === null ? 1 : -1;
    if (first === second) return a.id < b.id ? 1 : -1;
    return (first < second ? -1 : 1) * (sort.down ? -1 : 1);
  });
}

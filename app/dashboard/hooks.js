// @ts-check
/** State shared by views: loaded data, names of uploads, what the server offers, the window's title. */

import { useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { ApiError, Unavailable, get } from "./api.js";

/** Set the window title while the component is mounted; views override the shell. @param {string} title */
export function useTitle(title) {
  useEffect(() => {
    document.title = `${title} · IntraSlice`;
  }, [title]);
}

/**
 * Load data, repeatedly if `seconds` is set; report an unavailable service to the shell.
 * @param {(signal: AbortSignal) => Promise<any>} load
 * @param {any[]} depends
 * @param {number} seconds between loads; 0 loads once
 */
export function useLoaded(load, depends, seconds = 0) {
  const [loaded, setLoaded] = useState(/** @type {any} */ ({ data: null, error: null }));
  const latest = useRef(() => {});
  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    const step = async () => {
      clearTimeout(timer);
      try {
        const data = await load(stop.signal);
        if (!stop.signal.aborted) setLoaded({ data, error: null });
        reportToShell(null);
      } catch (error) {
        if (stop.signal.aborted) return;
        reportToShell(error);
        if (!(error instanceof Unavailable)) setLoaded((/** @type {any} */ old) => ({ ...old, error }));
        if (error instanceof Unavailable && !seconds) timer = setTimeout(step, 3000);
      }
      if (seconds && !stop.signal.aborted) timer = setTimeout(step, seconds * 1000);
    };
    latest.current = step;
    step();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, depends);
  return { ...loaded, reload: () => latest.current() };
}

/** @type {(error: any) => void} */
let listener = () => {};

/** @param {(error: any) => void} handler */
export function onFault(handler) {
  listener = handler;
}

/** Let the shell show that the service is unavailable, or ask for a key. @param {any} error */
export function reportToShell(error) {
  if (error === null || error instanceof Unavailable) listener(error);
  else if (error instanceof ApiError && error.status === 401) listener(error);
}

/** Names of the project's uploads by id; empty until they are loaded. @returns {import("./words.js").Names} */
export function useUploadNames() {
  const uploads = useLoaded((signal) => get("/v1/uploads?limit=100", signal), []).data?.data || [];
  return new Map(uploads.map((/** @type {any} */ upload) => [upload.id, upload.name || upload.id]));
}

/** Models, texts and methods that jobs may name on this server; null until they are loaded. @returns {any} */
export const useOffer = () => useLoaded((signal) => get("/v1/models?limit=1", signal), []).data?.offer || null;

/** Title of a method. @param {any} offer @param {string | null | undefined} name */
export const methodTitle = (offer, name) =>
  (offer?.methods || []).find((/** @type {any} */ method) => method.name === name)?.title || name || "–";

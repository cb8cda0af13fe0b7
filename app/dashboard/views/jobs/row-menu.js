// @ts-check
/** Menu of what can be done with one job of the list. */

import { html, useEffect, useRef, useState } from "../../vendor/htm-preact.js";
import { post, remove } from "../../api.js";
import { Action } from "../../components/actions.js";
import { ENDED } from "../../words.js";

/** Height in pixels that the longest menu needs. */
const HEIGHT = 200;

/** Verbs of the API that a state allows, with their names. @param {any} job @returns {[string, string][]} */
function verbs(job) {
  if (job.state === "queued" || job.state === "running") return [["pause", "Pause"], ["cancel", "Cancel"]];
  if (job.state === "paused") return [["resume", "Resume"], ["cancel", "Cancel"]];
  if (job.state === "failed" || job.state === "cancelled") return [["retry", "Retry"]];
  if (job.state !== "succeeded" || job.expired_at) return [];
  return [job.pinned ? ["unpin", "Unpin files"] : ["pin", "Pin files"]];
}

/** Place of the menu on the screen, below its button or, where there is no room, above it. @param {DOMRect} edge */
function placeOf(edge) {
  const vertical = edge.bottom + HEIGHT > window.innerHeight ? `bottom: ${window.innerHeight - edge.top}px; top: auto` : `top: ${edge.bottom}px`;
  // Fixed, because the table scrolls in its own box, which would cut the menu.
  return `position: fixed; right: ${window.innerWidth - edge.right}px; ${vertical}`;
}

/** @param {{ job: any, title: string, reload: () => void }} props */
export function RowMenu({ job, title, reload }) {
  const [place, setPlace] = useState("");
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    if (!place) return undefined;
    const close = (/** @type {any} */ event) => {
      // The target of a change of size is the window.
      const isInside = event.target instanceof Node && box.current?.contains(event.target);
      if (event.type === "keydown" ? event.key === "Escape" : !isInside) setPlace("");
    };
    const events = ["pointerdown", "focusin", "keydown", "scroll", "resize"];
    for (const name of events) window.addEventListener(name, close, true);
    return () => {
      for (const name of events) window.removeEventListener(name, close, true);
    };
  }, [place]);
  const toggle = (/** @type {any} */ event) => setPlace(place ? "" : placeOf(event.currentTarget.getBoundingClientRect()));
  const act = (/** @type {() => Promise<any>} */ work) => async () => {
    await work();
    setPlace("");
    reload();
  };
  return html`<div class="menu" ref=${box}>
    <button type="button" class="ghost small" aria-expanded=${place ? "true" : "false"} aria-label=${`Actions of ${title} ${job.id}`} onClick=${toggle}>⋯</button>
    ${place ? html`<div class="items" style=${place}>
      ${verbs(job).map(([verb, name]) => html`<${Action} key=${verb} kind=${verb === "cancel" ? "danger" : ""} work=${act(() => post(`/v1/jobs/${job.id}/${verb}`))}>${name}<//>`)}
      <a href=${`#/new?like=${job.id}`}>Duplicate</a>
      ${ENDED.includes(job.state) ? html`<${Action} kind="danger" confirm=${`Delete ${title} and its files?`} work=${act(() => remove(`/v1/jobs/${job.id}`))}>Delete<//>` : null}
    </div>` : null}
  </div>`;
}

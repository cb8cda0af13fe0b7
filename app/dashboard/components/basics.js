// @ts-check
/** Small components of every view: badges, differences, facts, notes, cards, states of loading. */

import { html } from "../vendor/htm-preact.js";
import { problemText } from "../problems.js";
import { stateName } from "../words.js";

/** @param {{ state: string, more?: string }} props `more`: what follows the state's name */
export const State = ({ state, more }) => html`<span class=${`state ${state}`}>${stateName(state)}${more || ""}</span>`;

/** @param {{ children?: any }} props */
export const Tag = ({ children }) => html`<span class="tag">${children}</span>`;

/** A difference, coloured by what it means. @param {{ kind: "ok" | "warn" | "bad" | "", children?: any }} props */
export const Delta = ({ kind, children }) => html`<span class=${`delta ${kind}`}>${children}</span>`;

/** @param {{ pairs: [string, any][] }} props */
export const Facts = ({ pairs }) => html`<dl class="facts">
  ${pairs
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}
</dl>`;

/** @param {{ title?: any, aside?: any, label?: string, class?: string, children?: any }} props */
export const Card = ({ title, aside, label, class: more, children }) => html`<section class=${`card ${more || ""}`} aria-label=${label}>
  ${title ? html`<header><h2>${title}</h2>${aside || null}</header>` : null}
  <div class="body">${children}</div>
</section>`;

/** @param {{ name: string, value: any, note?: any }} props */
export const Kpi = ({ name, value, note }) => html`<div class="card kpi">
  <p class="sub small">${name}</p><p class="value">${value}</p>${note ? html`<p class="sub small">${note}</p>` : null}
</div>`;

/** @param {{ kind: "ok" | "info" | "warn" | "bad", title?: string, role?: string, children?: any }} props */
export const Note = ({ kind, title, role, children }) => html`<div class=${`note ${kind}`} role=${role}>
  <div>${title ? html`<b>${title} </b>` : null}${children}</div>
</div>`;

/** Head of a view: trail, title, what the page is for, actions. @param {{ trail?: [string, string][], title: any, about?: any, children?: any }} props */
export const PageHead = ({ trail, title, about, children }) => html`<div class="head">
  <div>
    ${trail ? html`<p class="trail">${trail.map(([link, name]) => html`<a href=${link}>${name}</a> / `)}</p>` : null}
    <h1>${title}</h1>
    ${about ? html`<p class="sub small">${about}</p>` : null}
  </div>
  <div class="actions">${children}</div>
</div>`;

/** @param {{ what?: string }} props */
export const Loading = ({ what }) => html`<p class="sub" role="status">Loading${what ? ` ${what}` : ""} …</p>`;

/** @param {{ title: string, children?: any }} props */
export const Empty = ({ title, children }) => html`<div class="card empty"><p><b>${title}</b></p><p class="sub">${children}</p></div>`;

/** An error of a request; those of single fields are listed unless they stand beside the fields. @param {{ error: any, beside?: boolean }} props */
export function Fault({ error, beside }) {
  if (!error) return null;
  const fields = beside ? [] : error.problems || [];
  return html`<div class="fault" role="alert">
    <p>${error.message}</p>
    ${fields.length ? html`<ul>${fields.map((/** @type {any} */ problem) => html`<li>${problemText(problem, true)}</li>`)}</ul>` : null}
  </div>`;
}

/** A bar whose whole length is 1. @param {{ part: number, label?: string }} props */
export const Bar = ({ part, label }) => html`<div class="bar" role=${label ? "img" : undefined} aria-label=${label} aria-hidden=${label ? undefined : "true"}>
  <div style=${`width: ${Math.round(100 * Math.min(Math.max(part, 0), 1))}%`}></div>
</div>`;

/** @param {{ moment: string, text: string }} props */
export const Moment = ({ moment, text }) => html`<time datetime=${moment} title=${new Date(moment).toLocaleString()}>${text}</time>`;

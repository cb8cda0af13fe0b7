// @ts-check
/** Controls of forms and views: segmented controls, option cards, chips, tabs, fields. */

import { html } from "../vendor/htm-preact.js";

/** One of a few values, in one line. @param {{ label: string, name: string, options: string[][], value: string, choose: (value: string) => void }} props */
export const Segmented = ({ label, name, options, value, choose }) => html`<div class="segmented" role="radiogroup" aria-label=${label}>
  ${options.map(([option, text]) => html`<label class=${option === value ? "chosen" : ""}>
    <input type="radio" name=${name} checked=${option === value} onChange=${() => choose(option)} />${text}</label>`)}
</div>`;

/** One of a few values, each explained on a card. @param {{ label: string, name: string, options: { value: string, title: string, detail: any, tag?: string }[], value: string, choose: (value: string) => void }} props */
export const OptionCards = ({ label, name, options, value, choose }) => html`<div class="options" role="radiogroup" aria-label=${label}>
  ${options.map((option) => html`<label class=${`option ${option.value === value ? "chosen" : ""}`}>
    <span class="option-title"><input type="radio" name=${name} checked=${option.value === value} onChange=${() => choose(option.value)} /><b>${option.title}</b></span>
    <span class="sub small">${option.detail}</span>
    ${option.tag ? html`<span class="tag">${option.tag}</span>` : null}
  </label>`)}
</div>`;

/** A checkbox drawn as a chip. @param {{ checked: boolean, toggle: () => void, children?: any }} props */
export const Chip = ({ checked, toggle, children }) => html`<label class=${`chip ${checked ? "chosen" : ""}`}>
  <input type="checkbox" checked=${checked} onChange=${toggle} />${children}</label>`;

/** @type {Record<string, number>} */
const STEPS = { ArrowRight: 1, ArrowLeft: -1 };

/** Tabs that switch a panel. @param {{ label: string, id: string, tabs: { value: string, title: string, count?: any }[], value: string, choose: (value: string) => void }} props */
export function Tabs({ label, id, tabs, value, choose }) {
  const move = (/** @type {KeyboardEvent} */ event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const at = tabs.findIndex((tab) => tab.value === value);
    const next = tabs[(at + step + tabs.length) % tabs.length];
    choose(next.value);
    document.getElementById(`${id}-${next.value}-tab`)?.focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${move}>
    ${tabs.map((tab) => html`<button type="button" role="tab" id=${`${id}-${tab.value}-tab`} aria-selected=${tab.value === value ? "true" : "false"}
      aria-controls=${`${id}-panel`} tabindex=${tab.value === value ? 0 : -1} onClick=${() => choose(tab.value)}>${tab.title}${tab.count === undefined || tab.count === null ? null : html` <span class="dim">${tab.count}</span>`}</button>`)}
  </div>`;
}

/** @param {{ id: string, value: string, children?: any }} props panel of the tabs with this id */
export const TabPanel = ({ id, value, children }) => html`<div role="tabpanel" id=${`${id}-panel`} aria-labelledby=${`${id}-${value}-tab`}>${children}</div>`;

/** A labelled field with its hint and its error. @param {{ id: string, label: any, hint?: any, error?: string, children?: any }} props */
export const Field = ({ id, label, hint, error, children }) => html`<div class="field">
  <label for=${id}>${label}</label>
  ${children}
  ${hint ? html`<p class="hint" id=${`${id}-hint`}>${hint}</p>` : null}
  ${error ? html`<p class="fault small" id=${`${id}-error`} role="alert">${error}</p>` : null}
</div>`;

/** Ids of what describes a field, for `aria-describedby`. @param {string} id @param {any} hint @param {string} [error] */
export const describedBy = (id, hint, error) => [hint ? `${id}-hint` : "", error ? `${id}-error` : ""].filter(Boolean).join(" ") || undefined;

// @ts-check
/** Code to copy. */

import { html, useState } from "../vendor/htm-preact.js";
import { Copy } from "./actions.js";
import { TabPanel, Tabs } from "./controls.js";

/** @param {{ text: string, label: string }} props */
export const Code = ({ text, label }) => html`<pre class="code" tabindex="0" role="region" aria-label=${label}><code>${text}</code></pre>`;

/** A code block with its own button. @param {{ text: string, label: string }} props */
export const CopiedCode = ({ text, label }) => html`<div class="copied-code"><${Code} text=${text} label=${label} /><${Copy} text=${text} what=${label} /></div>`;

/** The same in several languages. @param {{ id: string, title: string, snippets: { value: string, title: string, text: string, hint?: any }[] }} props */
export function CodeTabs({ id, title, snippets }) {
  const [value, setValue] = useState(snippets[0].value);
  const current = snippets.find((snippet) => snippet.value === value) || snippets[0];
  return html`<section class="card" aria-label=${title}>
    <header><h2>${title}</h2><${Copy} text=${current.text} what=${`${title}, ${current.title}`} /></header>
    <div class="body stack">
      <${Tabs} label=${title} id=${id} tabs=${snippets} value=${current.value} choose=${setValue} />
      <${TabPanel} id=${id} value=${current.value}>
        <${Code} text=${current.text} label=${`${title}, ${current.title}`} />
        ${current.hint ? html`<p class="hint">${current.hint}</p>` : null}
      <//>
    </div>
  </section>`;
}

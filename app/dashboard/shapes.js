// @ts-check
/** What every layer keeps, drawn as the layers finish. */

import { html } from "./vendor/htm-preact.js";

const WIDTH = 720;
const ROW = 70;
const GAP = 26;

/** @param {{ layers: any[], total: number }} props `layers` by their number */
export function Shapes({ layers, total }) {
  const done = layers.filter(Boolean);
  const rows = [
    ["attention: what is kept of the heads' widths", "attention", "attention_part"],
    ["MLP: what is kept of its width", "mlp", "mlp_part"],
  ];
  const step = WIDTH / Math.max(total, 1);
  return html`<svg class="shapes" viewBox=${`0 0 ${WIDTH} ${2 * (ROW + GAP)}`} role="img"
    aria-label=${`${done.length} of ${total} layers are done; a bar is the part of the dense size that a layer keeps.`}>
    ${rows.map(([name, kind, part], at) => {
      const top = at * (ROW + GAP) + 14;
      return html`<g>
        <text x="0" y=${top - 4}>${name}</text>
        ${Array.from({ length: total }, (_, layer) => {
          const kept = layers[layer] ? layers[layer][part] : 0;
          return html`<g>
            <rect class="room" x=${layer * step + 1} y=${top} width=${step - 2} height=${ROW} />
            <rect class=${kind} x=${layer * step + 1} y=${top + ROW * (1 - kept)} width=${step - 2} height=${ROW * kept}>
              <title>${layers[layer] ? `layer ${layer}: ${Math.round(100 * kept)} %` : `layer ${layer}: not done yet`}</title>
            </rect>
          </g>`;
        })}
      </g>`;
    })}
  </svg>`;
}

// @ts-check
/** What every layer keeps, drawn as the layers finish. */

import { html } from "./vendor/htm-preact.js";

const WIDTH = 720;
const ROW = 70;
const GAP = 26;

/**
 * @param {{ layers: any[], total: number, dense: any }} props `layers` by their number; the largest
 *   seen stands for the dense size where the report is not there yet.
 */
export function Shapes({ layers, total, dense }) {
  const done = layers.filter(Boolean);
  const largest = (/** @type {(one: any) => number} */ size) =>
    Math.max(dense ? size(dense) : 0, ...done.map(size), 1);
  const rows = [
    ["attention: heads × (q/k + v) widths", "attention", (/** @type {any} */ one) => one.num_attention_heads * (one.qk_head_dim + one.v_head_dim)],
    ["MLP width", "mlp", (/** @type {any} */ one) => one.intermediate_size],
  ];
  const step = WIDTH / Math.max(total, 1);
  return html`<svg class="shapes" viewBox=${`0 0 ${WIDTH} ${2 * (ROW + GAP)}`} role="img"
    aria-label=${`${done.length} of ${total} layers are done; a bar is the part of the dense size that a layer keeps.`}>
    ${rows.map(([name, kind, size], at) => {
      const top = at * (ROW + GAP) + 14;
      const most = largest(/** @type {any} */ (size));
      return html`<g>
        <text x="0" y=${top - 4}>${name}</text>
        ${Array.from({ length: total }, (_, layer) => {
          const one = layers[layer];
          const part = one ? /** @type {any} */ (size)(one) / most : 0;
          return html`<g>
            <rect class="room" x=${layer * step + 1} y=${top} width=${step - 2} height=${ROW} />
            <rect class=${kind} x=${layer * step + 1} y=${top + ROW * (1 - part)} width=${step - 2} height=${ROW * part}>
              <title>${one ? `layer ${layer}: ${/** @type {any} */ (size)(one)} of ${most}` : `layer ${layer}: not done yet`}</title>
            </rect>
          </g>`;
        })}
      </g>`;
    })}
  </svg>`;
}

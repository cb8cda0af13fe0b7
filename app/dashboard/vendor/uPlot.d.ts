export default class uPlot {
  constructor(options: any, data: any, place: HTMLElement);
  setSize(size: { width: number; height: number }): void;
  destroy(): void;
}

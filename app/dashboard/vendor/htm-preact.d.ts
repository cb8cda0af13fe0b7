export function html(strings: TemplateStringsArray, ...values: any[]): any;
export function render(node: any, place: Element): void;
export function useState<T>(start: T | (() => T)): [T, (next: T | ((old: T) => T)) => void];
export function useEffect(effect: () => void | (() => void), depends?: any[]): void;
export function useRef<T>(start: T): { current: T };

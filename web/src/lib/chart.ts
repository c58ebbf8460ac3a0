/** The price chart of one symbol, in New York time. Loaded only when a symbol is opened. */

import { CandlestickSeries, ColorType, createChart, HistogramSeries, type UTCTimestamp } from 'lightweight-charts';
import type { Bar } from './api';
import { minuteTime, parseTime } from './format';

interface Candle { time: UTCTimestamp; open: number; high: number; low: number; close: number; volume: number }

/** In order of time, each minute once (the last one counts), minutes without a price left out. */
export function candles(bars: Bar[]): Candle[] {
  const byTime = new Map<number, Candle>();
  for (const { ts, ts_ns, open, high, low, close, volume } of bars) {
    const ms = ts_ns === undefined ? parseTime(ts ?? '') : ts_ns / 1e6;
    if (open === null || high === null || low === null || close === null || Number.isNaN(ms)) continue;
    const time = Math.floor(ms / 1000) as UTCTimestamp;
    byTime.set(time, { time, open, high, low, close, volume: volume ?? 0 });
  }
  return [...byTime.values()].sort((a, b) => a.time - b.time);
}

export function openChart(target: HTMLElement) {
  const colour = (variable: string, alpha = 1) => {
    const probe = target.appendChild(document.createElement('i'));
    probe.style.color = `var(${variable})`;
    const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g) ?? [];
    probe.remove();
    return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
  };
  const newYork = (time: unknown) => minuteTime(Number(time) * 1000);
  const [up, down, line] = [colour('--up'), colour('--down'), colour('--line')];
  const [upVolume, downVolume] = [colour('--up', 0.35), colour('--down', 0.35)];
  const chart = createChart(target, {
    autoSize: true,
    layout: { background: { type: ColorType.Solid, color: colour('--panel') }, textColor: colour('--dim'), fontSize: 11 },
    grid: { vertLines: { color: line }, horzLines: { color: line } },
    timeScale: { timeVisible: true, borderColor: line, tickMarkFormatter: newYork },
    rightPriceScale: { borderColor: line, scaleMargins: { top: 0.08, bottom: 0.25 } },
    localization: { timeFormatter: newYork },
  });
  const prices = chart.addSeries(CandlestickSeries, { upColor: up, downColor: down, wickUpColor: up, wickDownColor: down, borderVisible: false });
  const volumes = chart.addSeries(HistogramSeries, { priceScaleId: '', priceFormat: { type: 'volume' }, lastValueVisible: false, priceLineVisible: false });
  volumes.priceScale().applyOptions({ scaleMargins: { top: 0.82, bottom: 0 } });
  let drawn = '';

  return {
    draw(bars: Bar[], symbol: string): void {
      const data = candles(bars);
      const small = data.some((bar) => bar.low < 1);
      prices.applyOptions({ priceFormat: { type: 'price', precision: small ? 4 : 2, minMove: small ? 0.0001 : 0.01 } });
      prices.setData(data);
      volumes.setData(data.map(({ time, open, close, volume }) => ({ time, value: volume, color: close < open ? downVolume : upVolume })));
      if (drawn !== symbol) chart.timeScale().fitContent();
      drawn = data.length > 0 ? symbol : '';
    },
    remove: () => chart.remove(),
  };
}

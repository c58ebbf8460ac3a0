import { expect, test } from 'vitest';
import type { Alert } from './api';
import { Places } from './places';
import type { ServerMessage } from './socket';

const alert = (id: string, at?: string, type: 'alert' | 'alert_note' = 'alert'): ServerMessage => ({ type, ...(at && { at }), data: { alert_id: id } as Alert });
const welcome = (places: Record<string, string>): ServerMessage => ({ type: 'welcome', data: { places } });
const resumed = (recovered: boolean | 'history', alerts: number, places: Record<string, string>): ServerMessage => ({ type: 'resumed', data: { recovered, alerts, places } });

/** A page that was welcomed and has one alert. */
function page(): Places {
  const places = new Places();
  expect(places.begin()).toBeUndefined();
  places.take(welcome({ 0: '5-1', 1: '0-0' }));
  expect(places.take(alert('a', '0:5-2.0+'))).toBe('show');
  return places;
}

test('it goes on from the last place of each partition and the last alert', () => {
  const places = page();
  places.take(alert('n', '1:5-9.0', 'alert_note')); // a note has a place, but its alert is an old one
  expect(places.begin()).toEqual({ type: 'resume', data: { last_id: 'a', places: { 0: '5-2.0+', 1: '5-9.0' } } });
});

test('until the server has answered, alerts are dropped and the places of the welcome are left alone', () => {
  const places = page();
  places.begin();
  expect(places.take(welcome({ 0: '5-8', 1: '5-8' }))).toBe('show');
  expect(places.take(alert('late', '0:5-9.0'))).toBe('drop');
  expect(places.begin()?.data).toEqual({ last_id: 'a', places: { 0: '5-2.0+', 1: '0-0' } });
});

test('the places of the answer count once all that it announced has come', () => {
  const places = page();
  places.begin();
  expect(places.take(resumed('history', 2, { 0: '6-4', 1: '6-5' }))).toBe('missed');
  places.take(alert('b'));
  expect(places.begin()?.data).toEqual({ last_id: 'b', places: { 0: '5-2.0+', 1: '0-0' } });
  places.take(resumed('history', 2, { 0: '6-4', 1: '6-5' }));
  places.take(alert('b'));
  places.take(alert('c', undefined, 'alert_note'));
  expect(places.begin()?.data.places).toEqual({ 0: '6-4', 1: '6-5' });
});

test('a recovery without alerts is whole at once', () => {
  const places = page();
  places.begin();
  expect(places.take(resumed(true, 0, { 0: '5-3', 1: '0-0' }))).toBe('whole');
  expect(places.take(alert('b', '1:5-1.0'))).toBe('show');
  expect(places.begin()?.data.places).toEqual({ 0: '5-3', 1: '5-1.0' });
});

test('places that the server does not know are forgotten', () => {
  const places = page();
  places.begin();
  const error: ServerMessage = { type: 'error', data: { code: 'bad_resume', message: 'no' } };
  expect([places.take(error), places.take(error)]).toEqual(['missed', 'show']);
  expect(places.begin()).toBeUndefined();
});

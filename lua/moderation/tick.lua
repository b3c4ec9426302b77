#!lua flags=allow-oom
-- tick: what time brings: expired locks, requests that wait no longer, desks that are left, walks that go on, results that are to be told.
-- KEYS: totals hash, waiting zset, locks zset, seats zset, asks zset, walks zset, log stream, heads hash, desks zset, beats zset, untold zset
-- ARGV: clock_ms (ms, 0: server time), nonce (of the caller's process, begins new tokens), lock_ms (ms), limit (of each, at most 1000), judges (1: desks as well, 0: those who keep them may just be coming back), retell_ms (ms after which a result that is still to be told is answered again)
-- Returns: {1 there is more | 0, expired locks, desks left, the first error or empty, token of a result to be told, ...}
-- Guards: I2 I4 I8 I9
-- Repeat: no second effect
-- Cost: as submit and ask for each of at most limit locks, requests, desks and walks
local totals, waiting, locks, seats, asks, walks, log, heads, desks, beats, untold = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local clock_ms, nonce, lock_ms, limit, judges, retell_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

if limit < 1 or limit > 1000 then
  return redis.error_reply('PROTOCOL tick takes a limit of 1 to 1000')
end
--@include number
--@include clock
--@include write
--@include desk
--@include heads
--@include match
--@include leaving

-- Each step stands for itself: one that meets a foreign key is put off for a minute and holds up no other.
local PUT_OFF_MS = 60000
local failure, more, counts = '', 0, {0, 0}

local function due(set)
  local found = redis.pcall('ZRANGEBYSCORE', set, '-inf', now, 'LIMIT', 0, limit)
  if found.err then
    failure = 'PROTOCOL ' .. set .. ' holds a ' .. redis.call('TYPE', set).ok .. ', not a zset'
    return {}
  end
  more = #found == limit and 1 or more
  return found
end

local function try(set, name, step)
  local done, answer = pcall(step, name)
  if done then
    return answer
  end
  forget()
  failure = type(answer) == 'table' and answer.err or answer
  local score = tonumber(redis.call('ZSCORE', set, name) or now_ms + 1)
  if score <= now_ms then -- a part of the step may have been made, and an expired item be under another's lock by now
    redis.call('ZADD', set, whole(now_ms + PUT_OFF_MS), name)
  end
end

local function expire(id)
  local moderator = take_back(id, 'expired')
  counts[1] = counts[1] + 1
  local desk = moderator and read_desk(moderator)
  if desk and desk.by ~= '' then
    serve_desk(desk)
    save_desk(desk)
    commit()
  end
end

local function end_ask(moderator)
  local desk = read_desk(moderator)
  if not desk or desk.kind ~= 'http' or not end_wait(desk, desk.by) then
    write('ZREM', asks, moderator)
  end
  commit()
end

local function leave(moderator)
  counts[2] = counts[2] + 1
  if leave_desk(moderator) == 0 then
    write('ZREM', beats, moderator)
    write('ZREM', desks, moderator)
    commit()
  end
end

local function go_on(moderator)
  local desk = read_desk(moderator)
  if desk and desk.walks then
    serve_desk(desk, true)
    save_desk(desk)
  else
    write('ZREM', walks, moderator)
  end
  commit()
end

for _, id in ipairs(due(locks)) do
  try(locks, id, expire)
end
for _, moderator in ipairs(due(asks)) do
  try(asks, moderator, end_ask)
end
if judges == '1' then
  for _, moderator in ipairs(due(beats)) do
    try(beats, moderator, leave)
  end
end
for _, moderator in ipairs(due(walks)) do
  try(walks, moderator, go_on)
end
local tokens_due = due(untold)
for _, token in ipairs(tokens_due) do
  redis.call('ZADD', untold, whole(now_ms + retell_ms), token)
end
return {more, counts[1], counts[2], failure, unpack(tokens_due)}

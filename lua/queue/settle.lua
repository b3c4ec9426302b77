#!lua flags=allow-oom
-- settle: ends attempts: state, result and effects land together, job by job, or the job changes nothing.
-- KEYS: running zset, started zset, scheduled zset, open zset, done zset, dead zset, claims hash, results hash, waiters hash, cancels zset, history hash, totals hash, config hash, bell list, outbox stream
-- ARGV: clock_ms (ms, 0: server time), count (jobs, at most 1000); then per job: id, token, outcome (done, or kind:delay_ms:failed:effects: done | retry | dead, ms for retry, 1: counts as a failure, how many), result (JSON; of a failed attempt: the failure); then per effect: op, name (below :d:, or a task), words (how many), words
-- Returns: {now ms, per job: 1 settled | 0 lease lost | text: dead instead, because of this effect}
-- Guards: I1 I2 I3 I5 I8 I9 I10
-- Repeat: same answer
-- Cost: O(log n) per job and effect
local running, started, scheduled, open, done, dead, claims, results, waiters, cancels, history, totals, config, bell, outbox = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local clock_ms, count = ARGV[1], tonumber(ARGV[2])
local MOST_EFFECTS = 1000

if count < 1 or count > 1000 then
  return redis.error_reply('PROTOCOL settle takes 1 to 1000 jobs')
end
--@include clock
--@include number
--@include bell
--@include row
--@include finish
--@include history
--@include effects

-- Read the arguments as a whole before anything is written: where each job's begin, and what most jobs do not have.
local FIELDS = 4
local KINDS = {done = true, retry = true, dead = true}
local ids, begins, kinds, delays, failures, effects = {}, {}, {}, {}, {}, {}
local at = 3
for index = 1, count do
  local id, kind = ARGV[at], ARGV[at + 2]
  if not ARGV[at + FIELDS - 1] then
    return redis.error_reply('PROTOCOL settle has fewer arguments than it counts')
  end
  local effect_count = 0
  if kind ~= 'done' then
    local delay, failed, effects_told
    kind, delay, failed, effects_told = string.match(kind, '^(%a+):(%d+):([01]):(%d+)$')
    effect_count, delays[index], failures[index] = tonumber(effects_told), tonumber(delay), failed == '1'
    if not KINDS[kind] or effect_count > MOST_EFFECTS or delays[index] >= PRIORITY_STEP then
      return redis.error_reply('PROTOCOL job ' .. id .. ' has more than 1000 effects, an unknown outcome, or a delay that is no number of ms')
    end
  end
  ids[index], begins[index], kinds[index] = id, at, kind
  at = at + FIELDS
  if effect_count > 0 then
    effects[index] = {}
  end
  for number = 1, effect_count do
    local effect = {op = ARGV[at], name = ARGV[at + 1] or ''}
    local words = tonumber(ARGV[at + 2] or '')
    for word = 1, math.min(words or 0, #ARGV - at - 2) do
      effect[word] = ARGV[at + 2 + word]
    end
    effects[index][number] = effect
    at = at + 3 + (words or #ARGV)
  end
end
if at ~= #ARGV + 1 then
  return redis.error_reply('PROTOCOL settle has more or fewer arguments than it counts')
end

local rows = redis.call('HMGET', claims, unpack(ids))
local settled = redis.call('HMGET', results, unpack(ids))
local submitted = redis.call('ZMSCORE', open, unpack(ids))
local starts = redis.call('ZMSCORE', started, unpack(ids))
local wishes = cancel_wishes(ids)
local histories = redis.call('HLEN', history) > 0 and redis.call('HMGET', history, unpack(ids)) or {}
local first_due = tonumber(redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2]) or math.huge
local paused = redis.call('HGET', config, 'paused') == '1'
redis.call('ZCARD', running)
redis.call('ZCARD', done)
redis.call('ZCARD', dead)
redis.call('HLEN', waiters)
redis.call('HLEN', totals)
redis.call('LLEN', bell)
redis.call('XLEN', outbox)

-- Which jobs their callers still hold, decided and checked for all of them before the first write.
local held, prefix, prefixed = {}, nil, nil
for index, id in ipairs(ids) do
  local token, row = ARGV[begins[index] + 1], rows[index]
  if token ~= prefixed then
    prefix, prefixed = token .. ':', token
  end
  if row and string.sub(row, 1, #prefix) == prefix then
    check_row(row, id)
    held[index] = true
  end
end

-- What a call without a live lease hears: its own answer again, if its token was the one that settled, else 0.
local function answer_again(kind, token, row, line)
  if not line then
    return row and kind == 'retry' and string.sub(row, 1, #token + 7) == 'retry/' .. token .. ':' and 1 or 0
  end
  local settled_kind, settled_by = string.match(line, '^(%a+):([^:]+):')
  if settled_by ~= token then
    return kind == 'retry' and settled_by == 'retry/' .. token and 1 or 0
  end
  local _, failure = pcall(cjson.decode, settled_kind == 'dead' and string.match(line, '\n(.*)') or 'null')
  if type(failure) == 'table' and failure.error == 'BadEffect' then
    return failure.message
  end
  return settled_kind == kind and 1 or 0
end

local answers, retried, failures_of, handled = {now_ms}, {}, {}, {}
local sooner = false
for index, id in ipairs(ids) do
  local begin, row = begins[index], rows[index]
  local token, kind, failed, result = ARGV[begin + 1], kinds[index], failures[index], ARGV[begin + 3]
  local first = handled[id]
  if first then
    local answer = answers[first + 1]
    local same = token == ARGV[begins[first] + 1] and (kind == kinds[first] or answer ~= 1)
    answers[index + 1] = same and answer or 0
  elseif not held[index] then
    answers[index + 1] = answer_again(kind, token, row, settled[index])
  else
    local refusal = effects[index] and refuse_effects(effects[index])
    answers[index + 1] = refusal or 1
    handled[id] = index
    if refusal then
      finish(id, 'dead', row, submitted[index], starts[index], cjson.encode({error = 'BadEffect', message = refusal}))
    else
      if effects[index] then
        apply_effects(effects[index])
      end
      if kind == 'retry' and wishes[index] then
        finish(id, 'dead', 'retry/' .. row, submitted[index], starts[index], CANCELLED)
      elseif kind == 'retry' then
        local _, attempt, failures, crashes, place = parse_row(row, id)
        local due_ms = now_ms + delays[index]
        place = math.floor(place / PRIORITY_STEP) * PRIORITY_STEP + due_ms
        local counted = failures + (failed and 1 or 0)
        local new_row = make_row('retry/' .. token, attempt, counted, crashes % WAITING, place)
        redis.call('HSET', claims, id, new_row)
        redis.call('ZADD', scheduled, due_ms, id)
        table.insert(retried, id)
        if failed then
          table.insert(failures_of, id)
          table.insert(failures_of, longer_history(histories[index], result))
        end
        sooner = sooner or due_ms < first_due
      else
        if failed then
          local _, attempt, failures, crashes, place = parse_row(row, id)
          row = make_row(token, attempt, failures + 1, crashes, place)
        end
        finish(id, kind, row, submitted[index], starts[index], result)
      end
    end
  end
end
write_finished()
if #failures_of > 0 then
  redis.call('HSET', history, unpack(failures_of))
end
if #retried > 0 then
  redis.call('ZREM', running, unpack(retried))
  redis.call('ZREM', started, unpack(retried))
  redis.call('HINCRBY', totals, 'retried', #retried)
  if sooner and not paused then
    ring()
  end
end
tell_waiters()
return answers

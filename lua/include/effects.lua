-- Effects: the writes of a handler to its service's own data, under :d: of the same tag, and the jobs it submits: into
-- queues of the same tag at once, to other services by the outbox. Each op names the one type its key may have; with
-- the type, the range and the finiteness checked, none of them can fail.
local tag = string.match(claims, '^[^}]*}')
local data_prefix, queue_prefix, progress = tag .. ':d:', tag .. ':q:', string.gsub(claims, 'claims$', 'progress')
local LARGEST = 2 ^ 53
local OPS = {
  record = {type = 'zset', words = 3}, zrem = {type = 'zset', words = 1},
  hset = {type = 'hash', words = 2}, hdel = {type = 'hash', words = 1}, hincrby = {type = 'hash', words = 2},
  sadd = {type = 'set', words = 1}, srem = {type = 'set', words = 1},
  set = {type = 'string', words = 1}, delete = {words = 0},
  submit = {words = 4}, emit = {words = 3}, note = {words = 2},
}
local QUEUE_TYPES = {
  jobs = 'hash', ready = 'zset', scheduled = 'zset', open = 'zset', claims = 'hash', totals = 'hash', config = 'hash',
  bell = 'list',
}

local function whole_number(text)
  local number = tonumber(text)
  return number and math.abs(number) <= LARGEST and whole(number) == text and text ~= '-0' and number or nil
end

-- As much of a value as a message shows, in plain ASCII.
local function shown(value)
  return (string.gsub(string.sub(value, 1, 40), '[^\32-\126]', '?'))
end

-- nil, or why a job cannot be submitted; taken are the envelopes that earlier effects will have submitted.
local function refuse_submit(effect, priority, delay_ms, taken)
  local task = string.match(effect.name, effect.op == 'submit' and '^[a-z][a-z0-9_-]*$' or '^[a-z][a-z0-9_-]*%.[a-z][a-z0-9_-]*$')
  if not task or not string.match(priority, '^%d$') or not string.match(delay_ms, '^%d+$') or now_ms + delay_ms >= PRIORITY_STEP then
    return 'there is no such task, priority or delay: ' .. shown(effect.name .. ' ' .. priority .. ' ' .. delay_ms)
  end
  if effect.op == 'emit' then
    return nil
  end
  for part, kind in pairs(QUEUE_TYPES) do
    local found = redis.call('TYPE', queue_prefix .. task .. ':' .. part).ok
    if found ~= 'none' and found ~= kind then
      return 'its queue holds a ' .. found .. ' as ' .. part .. ', not a ' .. kind
    end
  end
  local id, envelope = task .. ' ' .. effect[1], effect[2]
  taken[id] = taken[id] or redis.call('HGET', queue_prefix .. task .. ':jobs', effect[1]) or envelope
  return taken[id] ~= envelope and 'job ' .. shown(effect[1]) .. ' exists with another payload' or nil
end

-- nil, or why these effects cannot land. types and numbers are the state as the earlier effects will leave it.
local function refuse_effects(effects)
  local types, numbers, taken = {}, {}, {}
  for position, effect in ipairs(effects) do
    local op, key = OPS[effect.op], data_prefix .. effect.name
    local where = 'effect ' .. position .. ' (' .. effect.op .. ' on ' .. effect.name .. '): '
    if not op or op.words ~= #effect then
      return where .. 'no such effect with ' .. #effect .. ' arguments'
    end
    if effect.op == 'submit' or effect.op == 'emit' then
      local refusal = refuse_submit(effect, effect[#effect - 1], effect[#effect], taken)
      if refusal then
        return where .. refusal
      end
    elseif effect.op == 'note' then
      local found = redis.call('TYPE', progress).ok
      if found ~= 'none' and found ~= 'hash' then
        return where .. 'the key of progress holds a ' .. found
      end
    elseif op.type then
      types[key] = types[key] or redis.call('TYPE', key).ok
      if types[key] ~= 'none' and types[key] ~= op.type then
        return where .. 'the key holds a ' .. types[key] .. ', not a ' .. op.type
      end
      types[key] = op.type
    else
      types[key] = 'none'
      numbers[key] = setmetatable({}, {__index = function() return '0' end})
    end
    if effect.op == 'record' then
      if effect[1] ~= '' and not whole_number(effect[1]) then
        return where .. 'the time is not a whole number of ms: ' .. shown(effect[1])
      end
      if not whole_number(effect[3]) or tonumber(effect[3]) < 0 then
        return where .. 'keep is not a whole number of ms: ' .. shown(effect[3])
      end
    elseif effect.op == 'hset' then
      numbers[key] = numbers[key] or {}
      numbers[key][effect[1]] = effect[2]
    elseif effect.op == 'hdel' then
      numbers[key] = numbers[key] or {}
      numbers[key][effect[1]] = '0'
    elseif effect.op == 'hincrby' then
      numbers[key] = numbers[key] or {}
      local held = numbers[key][effect[1]] or redis.call('HGET', key, effect[1]) or '0'
      local number, step = whole_number(held), whole_number(effect[2])
      if not number or not step or step > 0 and number > LARGEST - step or number < -LARGEST - step then
        return where .. 'not a whole number within 2^53: ' .. shown(held) .. ' + ' .. shown(effect[2])
      end
      numbers[key][effect[1]] = whole(number + step)
    end
  end
end

-- A timeline with a retention forgets as it records: at most 16 entries a call, and the key as a whole when it idles.
local function record(key, time_ms, member, keep_ms)
  redis.call('ZADD', key, time_ms == '' and now_ms or time_ms, member)
  if keep_ms > 0 then
    redis.call('PEXPIRE', key, keep_ms)
    local old = redis.call('ZRANGEBYSCORE', key, '-inf', now_ms - keep_ms, 'LIMIT', 0, 16)
    if #old > 0 then
      redis.call('ZREM', key, unpack(old))
    end
  end
end

-- As submit does it, but for the bound: what a handler emits is never refused.
local function submit(task, id, envelope, priority, delay_ms)
  local queue = queue_prefix .. task .. ':'
  if redis.call('HSETNX', queue .. 'jobs', id, envelope) == 0 then
    redis.call('HINCRBY', queue .. 'totals', 'repeated', 1)
    return
  end
  local place = priority * PRIORITY_STEP + now_ms + delay_ms
  redis.call('ZADD', queue .. 'open', now_ms, id)
  if delay_ms > 0 then
    redis.call('HSET', queue .. 'claims', id, make_row('-', 0, 0, 0, place))
    redis.call('ZADD', queue .. 'scheduled', now_ms + delay_ms, id)
  else
    redis.call('ZADD', queue .. 'ready', whole(place), id)
  end
  redis.call('HINCRBY', queue .. 'totals', 'submitted', 1)
  if redis.call('HGET', queue .. 'config', 'paused') ~= '1' and redis.call('LLEN', queue .. 'bell') == 0 then
    redis.call('RPUSH', queue .. 'bell', '1')
  end
end

local function apply_effects(effects)
  for _, effect in ipairs(effects) do
    local key = data_prefix .. effect.name
    if effect.op == 'record' then
      record(key, effect[1], effect[2], tonumber(effect[3]))
    elseif effect.op == 'delete' then
      redis.call('DEL', key)
    elseif effect.op == 'note' then
      redis.call('HSET', progress, effect[1], effect[2])
    elseif effect.op == 'submit' then
      submit(effect.name, effect[1], effect[2], tonumber(effect[3]), tonumber(effect[4]))
    elseif effect.op == 'emit' then
      local due_ms = effect[3] == '0' and '0' or whole(now_ms + effect[3])
      redis.call('XADD', outbox, '*', 'to', effect.name, 'envelope', effect[1], 'priority', effect[2], 'due', due_ms)
    else
      redis.call(effect.op, key, unpack(effect))
    end
  end
end

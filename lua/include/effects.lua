-- Effects: the writes of a handler to its service's own data, under :d: of the same tag and nowhere else. Each op
-- names the one type its key may have; with the type, the range and the finiteness checked, none of them can fail.
local data_prefix = string.match(claims, '^[^}]*}') .. ':d:'
local LARGEST = 2 ^ 53
local OPS = {
  record = {type = 'zset', words = 3}, zrem = {type = 'zset', words = 1},
  hset = {type = 'hash', words = 2}, hdel = {type = 'hash', words = 1}, hincrby = {type = 'hash', words = 2},
  sadd = {type = 'set', words = 1}, srem = {type = 'set', words = 1},
  set = {type = 'string', words = 1}, delete = {words = 0},
}

local function whole_number(text)
  local number = tonumber(text)
  return number and math.abs(number) <= LARGEST and whole(number) == text and text ~= '-0' and number or nil
end

-- As much of a value as a message shows, in plain ASCII.
local function shown(value)
  return (string.gsub(string.sub(value, 1, 40), '[^\32-\126]', '?'))
end

-- nil, or why these effects cannot land. types and numbers are the state as the earlier effects will leave it.
local function refuse_effects(effects)
  local types, numbers = {}, {}
  for position, effect in ipairs(effects) do
    local op, key = OPS[effect.op], effect.key
    local where = 'effect ' .. position .. ' (' .. effect.op .. ' on ' .. string.sub(key, #data_prefix + 1) .. '): '
    if not op or op.words ~= #effect then
      return where .. 'no such effect with ' .. #effect .. ' arguments'
    end
    if op.type then
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

local function apply_effects(effects)
  for _, effect in ipairs(effects) do
    if effect.op == 'record' then
      record(effect.key, effect[1], effect[2], tonumber(effect[3]))
    elseif effect.op == 'delete' then
      redis.call('DEL', effect.key)
    else
      redis.call(effect.op, effect.key, unpack(effect))
    end
  end
end

-- The first item of each line, kept so that a desk sees those of all its lines by one HMGET of at most 32 fields: for each
-- skill a row, with an entry for each of its levels where something waits, in order. An entry is the place in 14 digits, a
-- space, the id, a tab and the level, so that rows are compared as text; an id has no tab and no line break.
local LEVELS = 5

local function move_in_line(item, command, first, second)
  local class = item.skill .. ':' .. item.level
  lines_changed[class] = item.skill
  check_type(heads, 'hash')
  write(command, prefix .. 'line:' .. class, first, second)
end

function note_heads()
  for class, skill in pairs(lines_changed) do
    local level, row = string.sub(class, -1), redis.call('HGET', heads, skill) or ''
    local first = redis.call('ZRANGE', prefix .. 'line:' .. class, 0, 0, 'WITHSCORES')
    local entries = {first[1] and string.format('%014.0f ', tonumber(first[2])) .. first[1] .. '\t' .. level}
    for entry in string.gmatch(row, '[^\n]+') do
      if string.sub(entry, -1) ~= level then
        table.insert(entries, entry)
      end
    end
    table.sort(entries)
    local changed = table.concat(entries, '\n')
    if changed == '' then
      redis.call('HDEL', heads, skill)
    elseif changed ~= row then
      redis.call('HSET', heads, skill, changed)
    end
  end
end

local function rows_of(desk)
  local rows = redis.call('HMGET', heads, unpack(desk.skills))
  seen(heads, 'hash')
  return rows
end

-- The parts of a row's first entry, and the row without it.
local function split_row(row)
  local place, id, level, others = string.match(row, '^(%d+) ([^\n]*)\t(%d)\n?(.*)$')
  if not place then
    error('PROTOCOL foreign row in ' .. heads)
  end
  return tonumber(place), id, tonumber(level), others
end

-- The first of all heads that are not above the level of a desk.
local function first_head(desk, rows)
  for _ = 1, #rows * LEVELS do
    local least
    for index, row in ipairs(rows) do
      least = row and row ~= '' and (not least or row < rows[least]) and index or least
    end
    if not least then
      return nil
    end
    local _, id, level, others = split_row(rows[least])
    if level <= desk.level then
      return id
    end
    rows[least] = others
  end
end

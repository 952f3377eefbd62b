"""Facts about the world as bilingual tables: `(English, ..., Chinese, ...)` columns, one row a line."""

from __future__ import annotations


def rows(table: str) -> tuple[tuple[str, ...], ...]:
    """Splits a table into its rows and columns.

    Args:
        table: One row a line, columns separated by `|`; spaces around a column do not count.
    """
    lines = (line for line in table.strip().splitlines())
    return tuple(tuple(column.strip() for column in line.split("|")) for line in lines)


# country | capital | country | capital
CAPITALS = rows("""
China | Beijing | 中国 | 北京
Japan | Tokyo | 日本 | 东京
France | Paris | 法国 | 巴黎
Germany | Berlin | 德国 | 柏林
Italy | Rome | 意大利 | 罗马
Spain | Madrid | 西班牙 | 马德里
Portugal | Lisbon | 葡萄牙 | 里斯本
England | London | 英国 | 伦敦
Ireland | Dublin | 爱尔兰 | 都柏林
Russia | Moscow | 俄罗斯 | 莫斯科
Greece | Athens | 希腊 | 雅典
Egypt | Cairo | 埃及 | 开罗
Kenya | Nairobi | 肯尼亚 | 内罗毕
Canada | Ottawa | 加拿大 | 渥太华
Mexico | Mexico City | 墨西哥 | 墨西哥城
Brazil | Brasilia | 巴西 | 巴西利亚
Argentina | Buenos Aires | 阿根廷 | 布宜诺斯艾利斯
Peru | Lima | 秘鲁 | 利马
Chile | Santiago | 智利 | 圣地亚哥
Cuba | Havana | 古巴 | 哈瓦那
India | New Delhi | 印度 | 新德里
Thailand | Bangkok | 泰国 | 曼谷
Vietnam | Hanoi | 越南 | 河内
South Korea | Seoul | 韩国 | 首尔
Indonesia | Jakarta | 印度尼西亚 | 雅加达
Australia | Canberra | 澳大利亚 | 堪培拉
New Zealand | Wellington | 新西兰 | 惠灵顿
Turkey | Ankara | 土耳其 | 安卡拉
Iran | Tehran | 伊朗 | 德黑兰
Iraq | Baghdad | 伊拉克 | 巴格达
Norway | Oslo | 挪威 | 奥斯陆
Sweden | Stockholm | 瑞典 | 斯德哥尔摩
Finland | Helsinki | 芬兰 | 赫尔辛基
Denmark | Copenhagen | 丹麦 | 哥本哈根
Poland | Warsaw | 波兰 | 华沙
Austria | Vienna | 奥地利 | 维也纳
Hungary | Budapest | 匈牙利 | 布达佩斯
Belgium | Brussels | 比利时 | 布鲁塞尔
Nepal | Kathmandu | 尼泊尔 | 加德满都
Mongolia | Ulaanbaatar | 蒙古 | 乌兰巴托
""")

# thing | colour | thing | colour
COLOURS = rows("""
grass | green | 草 | 绿色
the sky | blue | 天空 | 蓝色
snow | white | 雪 | 白色
blood | red | 血 | 红色
coal | black | 煤 | 黑色
a banana | yellow | 香蕉 | 黄色
a strawberry | red | 草莓 | 红色
milk | white | 牛奶 | 白色
chocolate | brown | 巧克力 | 棕色
a lemon | yellow | 柠檬 | 黄色
a crow | black | 乌鸦 | 黑色
an elephant | grey | 大象 | 灰色
a leaf | green | 叶子 | 绿色
the sea | blue | 大海 | 蓝色
the sun | yellow | 太阳 | 黄色
a swan | white | 天鹅 | 白色
a carrot | orange | 胡萝卜 | 橙色
a tomato | red | 西红柿 | 红色
a frog | green | 青蛙 | 绿色
salt | white | 盐 | 白色
a cucumber | green | 黄瓜 | 绿色
a cherry | red | 樱桃 | 红色
""")

# animal | what it says | animal | what it says
SOUNDS = rows("""
cat | meow | 猫 | 喵喵
dog | woof | 狗 | 汪汪
cow | moo | 牛 | 哞哞
sheep | baa | 羊 | 咩咩
duck | quack | 鸭子 | 嘎嘎
frog | ribbit | 青蛙 | 呱呱
mouse | squeak | 老鼠 | 吱吱
bee | buzz | 蜜蜂 | 嗡嗡
lion | roar | 狮子 | 吼吼
pig | oink | 猪 | 哼哼
""")

# animal | legs | animal | legs
LEGS = rows("""
cat | four | 猫 | 四
dog | four | 狗 | 四
horse | four | 马 | 四
cow | four | 牛 | 四
rabbit | four | 兔子 | 四
duck | two | 鸭子 | 两
chicken | two | 鸡 | 两
eagle | two | 老鹰 | 两
ant | six | 蚂蚁 | 六
bee | six | 蜜蜂 | 六
butterfly | six | 蝴蝶 | 六
spider | eight | 蜘蛛 | 八
snake | no | 蛇 | 零
fish | no | 鱼 | 零
""")

# word | opposite | word | opposite
OPPOSITES = rows("""
big | small | 大 | 小
hot | cold | 热 | 冷
fast | slow | 快 | 慢
tall | short | 高 | 矮
new | old | 新 | 旧
good | bad | 好 | 坏
up | down | 上 | 下
left | right | 左 | 右
day | night | 白天 | 黑夜
open | closed | 开 | 关
full | empty | 满 | 空
rich | poor | 富 | 穷
strong | weak | 强 | 弱
light | dark | 亮 | 暗
wet | dry | 湿 | 干
early | late | 早 | 晚
near | far | 近 | 远
happy | sad | 高兴 | 难过
easy | difficult | 容易 | 困难
clean | dirty | 干净 | 肮脏
young | aged | 年轻 | 年老
inside | outside | 里面 | 外面
front | back | 前 | 后
thick | thin | 厚 | 薄
long | brief | 长 | 短
many | few | 多 | 少
loud | quiet | 吵闹 | 安静
soft | hard | 软 | 硬
true | false | 真 | 假
first | last | 最先 | 最后
sweet | bitter | 甜 | 苦
black | white | 黑 | 白
""")

DAYS = rows("""
Monday | 星期一
Tuesday | 星期二
Wednesday | 星期三
Thursday | 星期四
Friday | 星期五
Saturday | 星期六
Sunday | 星期日
""")

# month | days | month
MONTHS = rows("""
January | 31 | 一月
February | 28 | 二月
March | 31 | 三月
April | 30 | 四月
May | 31 | 五月
June | 30 | 六月
July | 31 | 七月
August | 31 | 八月
September | 30 | 九月
October | 31 | 十月
November | 30 | 十一月
December | 31 | 十二月
""")

# planet | place counted from the sun | planet | place
PLANETS = rows("""
Mercury | first | 水星 | 一
Venus | second | 金星 | 二
Earth | third | 地球 | 三
Mars | fourth | 火星 | 四
Jupiter | fifth | 木星 | 五
Saturn | sixth | 土星 | 六
Uranus | seventh | 天王星 | 七
Neptune | eighth | 海王星 | 八
""")

# person | what they do | person | what they do
JOBS = rows("""
teacher | teaches students | 老师 | 教学生
doctor | helps sick people | 医生 | 给人看病
farmer | grows food | 农民 | 种粮食
cook | makes meals | 厨师 | 做饭
driver | drives a car | 司机 | 开车
singer | sings songs | 歌手 | 唱歌
painter | paints pictures | 画家 | 画画
writer | writes books | 作家 | 写书
baker | bakes bread | 面包师 | 烤面包
pilot | flies a plane | 飞行员 | 开飞机
sailor | works on a ship | 水手 | 在船上工作
nurse | looks after patients | 护士 | 照顾病人
gardener | takes care of plants | 园丁 | 照料花草
postman | brings letters | 邮递员 | 送信
firefighter | puts out fires | 消防员 | 灭火
programmer | writes software | 程序员 | 写程序
""")

# thing | what it is for | thing | what it is for
USES = rows("""
knife | to cut things | 刀 | 切东西
pen | to write | 钢笔 | 写字
spoon | to eat soup | 勺子 | 喝汤
hammer | to hit nails | 锤子 | 钉钉子
key | to open a lock | 钥匙 | 开锁
umbrella | to stay dry in the rain | 雨伞 | 挡雨
clock | to tell the time | 钟 | 看时间
broom | to sweep the floor | 扫帚 | 扫地
needle | to sew clothes | 针 | 缝衣服
lamp | to give light | 灯 | 照明
cup | to drink water | 杯子 | 喝水
bed | to sleep | 床 | 睡觉
telephone | to talk to people far away | 电话 | 和远处的人说话
map | to find the way | 地图 | 找路
mirror | to see yourself | 镜子 | 照自己
saw | to cut wood | 锯子 | 锯木头
""")

# question and answer | question and answer: single facts that fit no table
SINGLE = rows("""
How many days are in a week?=There are seven days in a week. | 一个星期有几天？=一个星期有七天。
How many months are in a year?=There are twelve months in a year. | 一年有几个月？=一年有十二个月。
How many hours are in a day?=There are 24 hours in a day. | 一天有几个小时？=一天有二十四个小时。
How many minutes are in an hour?=There are 60 minutes in an hour. | 一个小时有几分钟？=一个小时有六十分钟。
How many seasons are there?=There are four seasons: spring, summer, autumn and winter. | 一年有几个季节？=一年有四个季节：春天、夏天、秋天和冬天。
Where does the sun rise?=The sun rises in the east. | 太阳从哪边升起？=太阳从东边升起。
Where does the sun set?=The sun sets in the west. | 太阳从哪边落下？=太阳从西边落下。
What do bees make?=Bees make honey. | 蜜蜂会做什么？=蜜蜂会做蜂蜜。
What is ice made of?=Ice is made of water. | 冰是什么做的？=冰是水做的。
What is the largest animal?=The blue whale is the largest animal. | 最大的动物是什么？=最大的动物是蓝鲸。
What is the highest mountain?=Mount Everest is the highest mountain. | 最高的山是什么山？=最高的山是珠穆朗玛峰。
Which planet do we live on?=We live on Earth. | 我们住在哪个行星上？=我们住在地球上。
How many letters are in the English alphabet?=There are 26 letters in the English alphabet. | 英文字母有几个？=英文字母有二十六个。
What shines at night?=The moon and the stars shine at night. | 夜里什么会发光？=夜里月亮和星星会发光。
What do plants need?=Plants need water, light and air. | 植物需要什么？=植物需要水、阳光和空气。
What do pandas eat?=Pandas eat bamboo. | 熊猫吃什么？=熊猫吃竹子。
""")
